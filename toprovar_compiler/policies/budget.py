"""When a scale is due for pruning, and how many tokens of a block are kept: the same for all policies."""

from __future__ import annotations

from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Step
from toprovar_compiler.schedule import LATE_SCALES, LATE_TOKENS, default_start

MIN_KEPT = 2
# Maps are collected where the next scale may be pruned; scales grow by up to this factor in tokens.
_LARGEST_GROWTH = 4


class Budget:
    """The budget of (layer l, scale s): K = round((1 - R_l (1 - keep_ratio_s)) N_s).

    R_l comes from ``layer_budgets`` and is 1 if these are not given.
    """

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self.options, self.schedule = options, schedule

    @property
    def first_scale(self) -> int | None:
        """The first scale that may be pruned; None where only its number of tokens will tell."""
        if self.options.start_scale is not None:
            return self.options.start_scale
        return None if self.schedule is None else max(0, len(self.schedule) - LATE_SCALES)

    def is_due(self, step: Step) -> bool:
        if self.options.start_scale is not None:
            return step.scale >= self.options.start_scale
        return default_start(self.schedule, step.scale, step.tokens)

    def leads_to_pruning(self, step: Step) -> bool:
        """Whether the scale after this one may be due."""
        start = self.first_scale
        if start is None:
            return step.tokens * _LARGEST_GROWTH >= LATE_TOKENS
        return step.scale + 1 >= start

    def keep(self, step: Step) -> int:
        """K of a step that is due, at least 2 (or all of fewer).

        Raises:
            OptionError: ``keep_ratio`` or ``layer_budgets`` has no number for this scale or layer.
        """
        ratio = self.options.keep_ratio_at(step.scale)
        budgets = self.options.layer_budgets
        if budgets is not None:
            if step.layer >= len(budgets):
                raise OptionError(
                    f"layer_budgets requires one number per layer, got {len(budgets)} for a model that has a "
                    f"layer {step.layer}; give one for each layer"
                )
            ratio = 1.0 - budgets[step.layer] * (1.0 - ratio)
        return max(min(MIN_KEPT, step.tokens), round(ratio * step.tokens))
