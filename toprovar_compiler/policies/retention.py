"""From the scores of an entropy source to the order in which tokens are kept (eq. 6 and A.5.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Step
from toprovar_compiler.policies.tile_floor import TileFloor
from toprovar_compiler.policies.token_noise import NOISE_BITS, TokenNoise


class Retention:
    """Changes scores, lowest kept, so that the gate keeps what ``retention`` and ``tile_floor`` say.

    "rank" and "literal" leave the order alone: P_keep of eq. 6 falls as the entropy rises, so that the K
    tokens of highest probability are those of lowest entropy; that "literal" keeps another K is
    :class:`~toprovar_compiler.policies.budget.Budget`'s part. "sampled" draws (see :func:`drawn`). One draw
    per sample and scale serves all layers, so that layers that keep more keep the same tokens and others.
    """

    def __init__(self, options: Options) -> None:
        self._temperature = (options.retention_temperature or 1.0) if options.retention == "sampled" else None
        self._noise = TokenNoise(options.policy_seed)
        self._asked = options.tile_floor
        self._floor = None
        if options.tile_floor is not None:
            side, share = options.tile_floor
            self._floor = TileFloor(int(side), share)

    def start_generation(self) -> None:
        self._noise.start_generation()

    def observe_codes(self, codes: Tensor) -> None:
        """The running scale's codes [samples, N]: later draws depend on them."""
        if self._temperature is not None:
            self._noise.observe_codes(codes)

    def refusal(self, step: Step, keep: int) -> str | None:
        """Why the step's tokens cannot be ordered as asked, if so.

        Raises:
            OptionError: ``keep`` tokens are fewer than the floor takes.
        """
        least = 0 if self._floor is None else self._floor.least(step.tokens)
        if least is None:
            return "tile_floor requires a square token grid"
        if keep < least:
            raise OptionError(
                f"tile_floor={self._asked!r} requires at least {least} of the {step.tokens} tokens of scale "
                f"{step.scale}, got a budget of {keep}; choose larger tiles or a smaller share"
            )
        return None

    def order(self, step: Step, scores: Tensor) -> Tensor:
        """Scores [samples, N] of the step's tokens -> [samples, N] of the same dtype, on the same device."""
        if self._temperature is not None:
            numbers = self._noise.numbers(step, (step.scale,), scores.device)
            scores = drawn(scores, (numbers.double() + 0.5) / (1 << NOISE_BITS), self._temperature)
        return scores if self._floor is None else self._floor.order(scores)


def drawn(scores: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Scores whose K lowest are K tokens drawn one after another, without replacement (Gumbel top-K).

    Each draw takes token i of those left with a probability in proportion to exp(-z_i / temperature), z the
    scores z-scored over the row. Scores that are not finite stay so, and rank last.

    scores ``[G, N]`` floating, uniform ``[G, N]`` float64 in (0, 1) -> ``[G, N]`` of the scores' dtype.
    Raises nothing.
    """
    finite = scores.isfinite()
    # float64, so that the order of a picture's tokens does not depend on the batch that it is in
    known = torch.where(finite, scores.double(), 0.0)
    count = finite.sum(-1, keepdim=True).clamp_min(1)
    distance = torch.where(finite, known - known.sum(-1, keepdim=True) / count, 0.0)
    spread = (distance.square().sum(-1, keepdim=True) / count).sqrt()
    standard = distance / spread.clamp_min(torch.finfo(torch.float32).tiny)
    gumbel = -torch.log(-torch.log(uniform))
    return torch.where(finite, standard / temperature - gumbel, math.inf).to(scores.dtype)
