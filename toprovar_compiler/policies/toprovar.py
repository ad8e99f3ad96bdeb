"""The ToProVAR policy: when to prune, in which layers, and which tokens: the paper's three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toprovar_compiler.errors import ArtifactError, OptionError
from toprovar_compiler.kernels import ops  # noqa: F401  (registers toprovar::entropy_gate)
from toprovar_compiler.options import EntropySourceName, Options
from toprovar_compiler.policies.base import BasePolicy, Choice, Decision, Dense, Outcome, Prune, Step
from toprovar_compiler.policies.budget import Budget
from toprovar_compiler.policies.calibrated_entropy import CalibratedEntropy
from toprovar_compiler.policies.calibration import Calibration, calibration_for
from toprovar_compiler.policies.entropy_source import EntropySource, LastFullLayer, LayerMean, SameLayer
from toprovar_compiler.policies.error_bound import FullMaps
from toprovar_compiler.policies.layer_classes import LayerClasses
from toprovar_compiler.policies.online_entropy import OnlineEntropy, scales_with_gates
from toprovar_compiler.policies.onset import Onset
from toprovar_compiler.policies.restoration import Bypass, CachedUpdate, Restoration, ScaleExit
from toprovar_compiler.policies.retention import Retention

UNCALIBRATED: EntropySourceName = "online"
"""What ranks the tokens of a model without a calibration."""
_NO_CLASSES = "no entropy maps of an earlier scale on a token grid to tell Global layers by"
_SOURCES: dict[str, type[EntropySource]] = {
    "layer-mean": LayerMean,
    "same-layer": SameLayer,
    "last-full-layer": LastFullLayer,
}


class ToprovarPolicy(BasePolicy):
    """Keeps the tokens of lowest attention entropy (eq. 6, by default in rank form, NOTES 2).

    Pruning may start where :class:`~toprovar_compiler.policies.onset.Onset` says so, from eq. 3, in layers
    that :class:`~toprovar_compiler.policies.layer_classes.LayerClasses` does not call Global, from eq. 4.
    The budget is :class:`~toprovar_compiler.policies.budget.Budget`'s; which tokens are kept is the order of
    the source's scores: by default of the importance that the entropies of single heads predict, as a
    calibration of the model or its first generation taught. The paper's order, that of the mean entropy
    (eq. 5), is ``entropy_source="layer-mean"``. Policies that differ in the ranking alone give another
    source. :class:`~toprovar_compiler.policies.retention.Retention` may draw instead, or spread what is kept.
    """

    name = "toprovar"

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self._schedule, self._asked, self._model_met = schedule, options, False
        self._set_up(options, None)

    def meet(self, model: nn.Module) -> None:
        """Read the model's calibration, if there is one.

        Raises:
            ArtifactError: the calibration that was asked for is missing, damaged or of another model.
            OptionError: ``target_speedup`` is above that of every plan, or ``tile_floor`` takes more tokens
                than a budget has.
        """
        self._model_met = True
        calibration = calibration_for(model, self._schedule, self._asked.calibration)
        if calibration is not None:
            self._set_up(calibration.complete(self._asked), calibration)
        self._check_floor()
        asking = _asks_for_calibration(self._asked)
        if asking is not None and calibration is None:
            raise ArtifactError(
                f"{asking} requires a calibration for {type(model).__name__}, got none: none comes with "
                "toprovar; make one with 'toprovar calibrate', and pass calibration=FILE"
            )

    def _set_up(self, options: Options, calibration: Calibration | None) -> None:
        self.options, self.budget = options, Budget(options, self._schedule)
        self.onset, self.layers, self._full = Onset(options), LayerClasses(options), FullMaps()
        self.source, self.retention = self.make_source(calibration), Retention(options)
        self.restoration = _restoration(options, self.budget.first_scale)
        self.exits_scales = self.restoration.exits_scales
        self.may_replace = isinstance(options.guidance_until, int)
        self._choices = _Choices()

    def make_source(self, calibration: Calibration | None) -> EntropySource:
        """What ranks the tokens, given the model's calibration if there is one."""
        name = self.options.entropy_source
        if name is None:
            name = UNCALIBRATED if calibration is None else "calibrated"
        if name == "calibrated" and calibration is not None:
            return CalibratedEntropy(calibration.gates)
        if name in _SOURCES:
            return _SOURCES[name]()
        return OnlineEntropy(scales_with_gates(self._schedule, self.budget.first_scale))

    def start_generation(self) -> None:
        """Forget the last one.

        Raises:
            OptionError: a calibration was asked for, but a function without a model was compiled.
        """
        asking = None if self._model_met else _asks_for_calibration(self._asked)
        if asking is not None:
            raise OptionError(
                f"{asking} requires a model or a method of one, got a function that belongs to none; compile "
                "the model, or leave it out"
            )
        self.source.start_generation()
        self.retention.start_generation()
        self.onset.start_generation()
        self.layers.start_generation()
        self._full.start_generation()
        self.restoration.start_generation()
        self._choices = _Choices()

    def decide(self, step: Step, stream: Tensor) -> Decision:
        if not self.budget.is_due(step):
            return self._dense(self.budget.leads_to_pruning(step))
        if not self.onset.reached(step.scale):
            self.onset.wait()
            return self._dense()
        detail = self.layers.is_detail(step)
        if not detail:
            return self._dense(fallback=_NO_CLASSES if detail is None else None)
        keep = self.budget.keep(step)
        if keep >= step.tokens:
            return self._dense()
        refusal = self.retention.refusal(step, keep)
        if refusal is not None:
            return self._dense(fallback=refusal)
        base = self.restoration.base(step, stream)
        if base is None:
            return self._dense(fallback="no cached update of an earlier scale to restore tokens from")
        if self.restoration.per_scale:
            return self._prune_scale(step, keep, base)
        scores = self._scores(step)
        if scores is None:
            return self._no_scores()
        return Prune(keep, base, choice=None, entropy=scores, maps=self.source.reads_entropy)

    def observe(self, step: Step, outcome: Outcome) -> None:
        self.source.observe(step, outcome)
        # Scales before the floor have few tokens, and reach a threshold by chance.
        full = outcome.entropy is not None and outcome.kept is None
        if full and self.budget.leads_to_pruning(step):
            self.onset.observe(step, outcome)
            self.layers.observe(step, outcome)
        self.restoration.observe(step, outcome)
        self._full.observe(step, outcome)

    @property
    def learning(self) -> bool:
        return self.source.learning

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        self.source.observe_codes(codes, vectors)
        self.retention.observe_codes(codes)

    def replaces_unconditional(self, scale: int) -> bool:
        until = self.options.guidance_until
        return isinstance(until, int) and scale >= until

    def complaints(self) -> list[str]:
        return [*self.onset.complaints(), *self.layers.complaints(), *self.source.complaints()]

    def full_maps(self, scale: int) -> Sequence[Tensor]:
        return self._full.of(scale)

    def _dense(self, entropy: bool = True, fallback: str | None = None) -> Dense:
        if entropy:
            entropy = self.source.reads_entropy or self.onset.reads_entropy or self.layers.reads_entropy
        return Dense(entropy, fallback)

    def _prune_scale(self, step: Step, keep: int, base: Tensor) -> Decision:
        if self._choices.scale != step.scale:
            scores = self._scores(step)
            if scores is None:
                return self._no_scores()
            self._choices = _Choices(step.scale, scores)
        choice = self._choices.of(keep, step.rows_per_sample)
        return Prune(keep, base, choice=choice, entropy=None, maps=self.source.reads_entropy)

    def _scores(self, step: Step) -> Tensor | None:
        scores = self.source.scores(step)
        return None if scores is None else self.retention.order(step, scores)

    def _check_floor(self) -> None:
        """Whether all scales that may be pruned have a budget for it, where they are known beforehand."""
        known = self._schedule if self.options.tile_floor is not None else None
        layers = len(self.options.layer_budgets or (1.0,))
        for scale, tokens in enumerate(known or ()):
            steps = [Step(scale, layer, tokens, 0, 1, 1) for layer in range(layers)]
            for step in filter(self.budget.is_due, steps):
                self.retention.refusal(step, self.budget.keep(step))

    def _no_scores(self) -> Dense:
        return self._dense(fallback=self.source.missing)


class _Choices:
    """What the layers of one scale keep, by one ranking: layers that keep more keep the same and others."""

    def __init__(self, scale: int = -1, scores: Tensor | None = None) -> None:
        self.scale, self._scores = scale, scores
        self._made: dict[int, Choice] = {}

    def of(self, keep: int, rows_per_sample: int) -> Choice:
        if keep not in self._made:
            index = torch.ops.toprovar.entropy_gate(self._scores, keep)
            self._made[keep] = Choice(index, index.repeat(rows_per_sample, 1))
        return self._made[keep]


def _asks_for_calibration(options: Options) -> str | None:
    """The option that cannot do without one, as it was written; None where none is needed."""
    for name in ("calibration", "target_speedup"):
        if getattr(options, name) is not None:
            return f"{name}={getattr(options, name)!r}"
    return "entropy_source='calibrated'" if options.entropy_source == "calibrated" else None


def _restoration(options: Options, first_scale: int | None) -> Restoration:
    if options.restoration == "cached-update":
        return CachedUpdate(first_scale)
    return ScaleExit() if options.restoration == "scale-exit" else Bypass()
