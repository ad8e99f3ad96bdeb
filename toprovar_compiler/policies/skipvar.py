"""SkipVAR (arXiv 2506.08908): a decision model that sees the frequencies leaves out late scales, or late
unconditional branches, per picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import BasePolicy, Decision, Dense, Step
from toprovar_compiler.policies.edges import sobel_magnitude
from toprovar_compiler.policies.skipvar_decisions import Decisions, decisions_for
from toprovar_compiler.schedule import grid_of

LOW_FREQUENCIES = 0.4
"""Radius of the low frequencies, as a share of the largest that a grid holds."""
_EPS = 1e-6


class SkipvarPolicy(BasePolicy):
    """Decides once per generation, after the codes of the decision scale.

    A first model says how many of the last scales are not run (0 to 3). Where that is none, a second one says
    in how many of them only the conditional rows are run, whose results then stand for the unconditional ones
    too. As in the authors' code both are softmax regressions on two features: how much the decision scale
    changed the edges, and the share of high frequencies (:func:`high_frequencies`). That code takes them from
    decoded pictures; here they are those of the sum of the codebook's vectors, so that no decoder need be
    known, and the models are fitted to that (:mod:`toprovar_compiler.policies.skipvar_fit`).

    All pictures of a batch run the same scales, so the most careful decision among them rules. No scale
    before ``start_scale``, if that is given, is left out.
    """

    name = "skipvar"
    may_exit = True
    may_replace = True

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self._options, self._schedule = options, schedule
        self._decisions: Decisions | None = None
        self.start_generation()

    def meet(self, model: nn.Module) -> None:
        """Read the decision model.

        Raises:
            ArtifactError: there is none for this model.
        """
        if self._schedule is not None:
            self._decisions = decisions_for(model, self._schedule, self._options.decisions)

    def start_generation(self) -> None:
        self._scale = 0
        self._sum: Tensor | None = None
        self._before: Tensor | None = None
        self._seen: list[int] = []
        self._decided: tuple[int, int] | None = None
        self._blind = False
        self.features: Tensor | None = None
        """[samples, 2] of the last generation that came to a decision."""

    def decide(self, step: Step, stream: Tensor) -> Decision:
        self._scale = step.scale
        return Dense()

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        decisions, schedule = self._decisions, self._schedule
        if decisions is None or schedule is None or self._scale > decisions.decision_scale:
            return
        own, judged = grid_of(vectors.shape[1]), grid_of(schedule[decisions.decision_scale])
        if own is None or judged is None:
            return
        grid = vectors.to(torch.promote_types(vectors.dtype, torch.float32)).transpose(1, 2).unflatten(2, own)
        added = interpolate(grid, size=judged, mode="bilinear") * decisions.scale_weights[self._scale]
        self._before = self._sum
        self._sum = added if self._sum is None else self._sum + added
        self._seen.append(self._scale)

    def exits_before(self, scale: int) -> bool:
        return self._is_late(scale, self._decision(scale)[0])

    def replaces_unconditional(self, scale: int) -> bool:
        skipped, replaced = self._decision(scale)
        return not skipped and self._is_late(scale, replaced)

    def complaints(self) -> list[str]:
        blind, self._blind = self._blind, False
        return (
            ["codes of the scales before the decision were not seen: nothing was left out"] if blind else []
        )

    def _is_late(self, scale: int, count: int) -> bool:
        scales = 0 if self._schedule is None else len(self._schedule)
        return scale >= max(scales - count, self._options.start_scale or 0) and count > 0

    def _decision(self, scale: int) -> tuple[int, int]:
        """How many last scales are not run, and in how many the unconditional branch is replaced."""
        decisions = self._decisions
        if decisions is None or scale <= decisions.decision_scale:
            return 0, 0
        if self._decided is None:
            self._decided = self._judge(decisions)
        return self._decided

    def _judge(self, decisions: Decisions) -> tuple[int, int]:
        complete = self._seen == list(range(decisions.decision_scale + 1))
        if not complete or self._before is None or self._sum is None:
            self._blind = True
            return 0, 0
        self.features = high_frequencies(self._before, self._sum)
        return min(decisions.skip.predict(self.features)), min(decisions.replace.predict(self.features))


def high_frequencies(before: Tensor, after: Tensor) -> Tensor:
    """The features of SkipVAR's decision models.

    The first is the mean change of the Sobel gradient's magnitude; the second the share of the spectrum's
    amplitude outside the circle of ``LOW_FREQUENCIES``. Both are of all channels alike.

    before, after ``[B, C, H, W]`` floating, the sums before and after the decision scale's codes
    -> ``[B, 2]``.
    """
    change = (sobel_magnitude(after) - sobel_magnitude(before)).abs().mean((1, 2, 3))
    height, width = after.shape[-2:]
    amplitude = torch.fft.fftshift(torch.fft.fft2(after), dim=(-2, -1)).abs()
    y = torch.arange(height, device=after.device)[:, None] - height // 2
    x = torch.arange(width, device=after.device)[None] - width // 2
    high = (y.square() + x.square()).sqrt() > int(LOW_FREQUENCIES * min(height, width) / 2)
    share = (amplitude * high).sum((1, 2, 3)) / (amplitude.sum((1, 2, 3)) + _EPS)
    return torch.stack((change, share), dim=1)
