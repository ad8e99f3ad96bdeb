"""When a scale is due for pruning, and how many tokens of a block are kept: the same for all policies."""

from __future__ import annotations

import functools

from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Step
from toprovar_compiler.schedule import LATE_SCALES, LATE_TOKENS

MIN_KEPT = 2
# Maps are collected where the next scale may be pruned; scales grow by up to this factor in tokens.
_LARGEST_GROWTH = 4


class Budget:
    """The budget of (layer l, scale s): K = round((1 - R_l (1 - keep_ratio_s)) N_s).

    R_l comes from ``layer_budgets`` and is 1 if these are not given. With ``retention_range`` (a_min, a_max)
    K is what eq. 6 keeps on average, phi = s / S with scales counted from 1; all tokens where R_l = 0. The
    normalised entropies of eq. 5 add up to 1, whatever they are, so that as printed ("literal")
    sum_i P_keep(i) = (1 - a_min) N - (a_max - a_min) phi R_l: it is known without them, and all that s, l and
    the entropies change is at most one token. In rank form their mean is 1 instead: N times as much.

    Raises:
        OptionError: eq. 6 needs S, and the model does not state its schedule.
    """

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self.options, self.schedule = options, schedule
        self._literal = options.retention == "literal"
        if schedule is None and (self._literal or options.retention_range is not None):
            raise OptionError(
                "eq. 6 (retention='literal', retention_range) requires a model that states its schedule "
                "(patch_nums or scale_schedule), got none; set keep_ratio and retention='rank' instead"
            )

    @functools.cached_property
    def first_scale(self) -> int | None:
        """The first scale that may be pruned; None where only its number of tokens will tell."""
        if self.options.start_scale is not None:
            return self.options.start_scale
        return None if self.schedule is None else max(0, len(self.schedule) - LATE_SCALES)

    def is_due(self, step: Step) -> bool:
        if self.first_scale is not None:
            return step.scale >= self.first_scale
        return step.tokens >= LATE_TOKENS

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
        return max(min(MIN_KEPT, step.tokens), round(self._expected(step)))

    def _expected(self, step: Step) -> float:
        score, ends = self._layer_score(step.layer), self.options.retention_range
        if ends is None:
            ratio = self.options.keep_ratio_at(step.scale)
            if not self._literal:
                return (1.0 - score * (1.0 - ratio)) * step.tokens
            ends = (1.0 - ratio, 1.0)
        if score == 0.0:
            return step.tokens
        assert self.schedule is not None, "checked when the budget was made"
        tendency = score * (step.scale + 1) / len(self.schedule)  # sum of q over the tokens
        return (1.0 - ends[0]) * step.tokens - (ends[1] - ends[0]) * tendency * (
            1 if self._literal else step.tokens
        )

    def _layer_score(self, layer: int) -> float:
        """R of eq. 4, as the options give it."""
        budgets = self.options.layer_budgets
        if budgets is None:
            return 1.0
        if layer >= len(budgets):
            raise OptionError(
                f"layer_budgets requires one number per layer, got {len(budgets)} for a model that has a "
                f"layer {layer}; give one for each layer"
            )
        return budgets[layer]
