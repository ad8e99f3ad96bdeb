"""The first ToProVAR policy: the token dimension, in rank form."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.errors import OptionError
from toprovar_compiler.kernels import ops  # noqa: F401  (registers toprovar::entropy_gate)
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Choice, Decision, Dense, Outcome, Prune, Step
from toprovar_compiler.policies.entropy_source import EntropySource, LastFullLayer, LayerMean, SameLayer
from toprovar_compiler.policies.restoration import Bypass, CachedUpdate, Restoration, ScaleExit
from toprovar_compiler.schedule import LATE_SCALES, LATE_TOKENS, default_start

MIN_KEPT = 2
# Maps are collected where the next scale may be pruned; scales grow by up to this factor in tokens.
_LARGEST_GROWTH = 4

_SOURCES: dict[str, type[EntropySource]] = {
    "layer-mean": LayerMean,
    "same-layer": SameLayer,
    "last-full-layer": LastFullLayer,
}


class ToprovarPolicy:
    """Keeps the tokens of lowest attention entropy (eq. 6 in rank form, NOTES 2).

    The budget of (layer l, scale s) is K = round((1 - R_l (1 - keep_ratio_s)) N_s), R_l from
    ``layer_budgets`` (1 if not given); which tokens are kept is the entropy's order (eq. 5).
    """

    name = "toprovar"

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self.options, self.schedule = options, schedule
        self.source: EntropySource = _SOURCES[options.entropy_source]()
        self.restoration = _restoration(options, schedule)
        self.exits_scales = self.restoration.exits_scales
        self._chosen: tuple[int, Choice] | None = None

    def start_generation(self) -> None:
        self.source.start_generation()
        self.restoration.start_generation()
        self._chosen = None

    def decide(self, step: Step, stream: Tensor) -> Decision:
        if not self._is_due(step):
            return Dense(entropy=self._leads_to_pruning(step))
        keep = self._budget(step)
        if keep >= step.tokens:
            return Dense(entropy=True)
        base = self.restoration.base(step, stream)
        if base is None:
            return Dense(entropy=True, fallback="no cached update of an earlier scale to restore tokens from")
        if self.restoration.per_scale:
            return self._prune_scale(step, keep, base)
        scores = self.source.scores(step)
        if scores is None:
            return self._no_scores(step)
        return Prune(keep, base, choice=None, entropy=scores)

    def observe(self, step: Step, outcome: Outcome) -> None:
        if outcome.entropy is not None:
            self.source.observe(step, outcome.entropy, outcome.kept)
        self.restoration.observe(step, outcome)

    def complaints(self) -> list[str]:
        return self.source.complaints()

    def _prune_scale(self, step: Step, keep: int, base: Tensor) -> Decision:
        if self._chosen is None or self._chosen[0] != step.scale:
            scores = self.source.scores(step)
            if scores is None:
                return self._no_scores(step)
            index = torch.ops.toprovar.entropy_gate(scores, keep)
            self._chosen = step.scale, Choice(index, index.repeat(step.rows_per_sample, 1))
        return Prune(keep, base, choice=self._chosen[1], entropy=None)

    def _no_scores(self, step: Step) -> Dense:
        if self.options.entropy_source == "last-full-layer":
            # The first layer of a scale has to run in full for the others to have a map: no fallback.
            return Dense(entropy=True)
        return Dense(entropy=True, fallback="no entropy map of an earlier scale on a square token grid")

    def _is_due(self, step: Step) -> bool:
        if self.options.start_scale is not None:
            return step.scale >= self.options.start_scale
        return default_start(self.schedule, step.scale, step.tokens)

    def _leads_to_pruning(self, step: Step) -> bool:
        start = _first_scale(self.options, self.schedule)
        if start is None:
            return step.tokens * _LARGEST_GROWTH >= LATE_TOKENS
        return step.scale + 1 >= start

    def _budget(self, step: Step) -> int:
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


def _first_scale(options: Options, schedule: tuple[int, ...] | None) -> int | None:
    if options.start_scale is not None:
        return options.start_scale
    return None if schedule is None else max(0, len(schedule) - LATE_SCALES)


def _restoration(options: Options, schedule: tuple[int, ...] | None) -> Restoration:
    if options.restoration == "cached-update":
        return CachedUpdate(_first_scale(options, schedule))
    return ScaleExit() if options.restoration == "scale-exit" else Bypass()
