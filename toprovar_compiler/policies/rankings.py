"""Policies that are toprovar but for the order of the tokens: controls that tell what the order is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Decision, Step
from toprovar_compiler.policies.calibration import Calibration
from toprovar_compiler.policies.entropy_source import BaseSource, EntropySource
from toprovar_compiler.policies.toprovar import ToprovarPolicy

# Odd constants of the splitmix64 generator, as signed 64-bit numbers.
_STEP, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_SCORE_BITS = 24  # a float32 holds every integer of so many bits


class InvertedPolicy(ToprovarPolicy):
    """Keeps the tokens of highest entropy, as NOVA (arXiv 2602.01345) argues; all else is toprovar."""

    name = "inverted"

    def make_source(self, calibration: Calibration | None) -> EntropySource:
        return _Negated(super().make_source(calibration))


class RandomPolicy(ToprovarPolicy):
    """Keeps tokens at random; all else is toprovar.

    The choice of a sample depends on ``policy_seed``, scale, layer and the codes of its earlier scales, so
    that it is the same in a batch and alone. Where codes are not seen, all samples share one choice.
    """

    name = "random"

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self._order = _RandomOrder(options.policy_seed)
        super().__init__(options, schedule)

    def make_source(self, calibration: Calibration | None) -> EntropySource:
        return self._order

    def decide(self, step: Step, stream: Tensor) -> Decision:
        self._order.device = stream.device
        return super().decide(step, stream)


class _Negated:
    """Another source's scores with the sign changed."""

    def __init__(self, source: EntropySource) -> None:
        self._source = source
        self.reads_entropy = source.reads_entropy
        self.start_generation = source.start_generation
        self.observe, self.observe_codes = source.observe, source.observe_codes
        self.complaints = source.complaints

    @property
    def missing(self) -> str | None:
        return self._source.missing

    @property
    def learning(self) -> bool:
        return self._source.learning

    def scores(self, step: Step) -> Tensor | None:
        scores = self._source.scores(step)
        return None if scores is None else -scores


class _RandomOrder(BaseSource):
    """Scores from a hash, computed where the codes are: no generator whose state a batch would share."""

    reads_entropy = False
    missing: str | None = None

    def __init__(self, seed: int) -> None:
        self._seed = seed % (1 << 63)
        self.device = torch.device("cpu")
        self._digest: Tensor | None = None

    def start_generation(self) -> None:
        self._digest = None

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        """Takes the codes [samples, N] of the running scale into each sample's digest [samples]."""
        places = torch.arange(codes.shape[1], device=codes.device)
        earlier = torch.zeros_like(codes[:, 0]) if self._digest is None else self._digest
        self._digest = _mix(_mix(codes.long() + places * _STEP).sum(1) + earlier)

    def scores(self, step: Step) -> Tensor:
        digest = self._digest
        if digest is None or digest.shape[0] != step.samples:
            digest = torch.zeros(step.samples, dtype=torch.int64)
        mixed = digest.to(self.device)
        for number in (self._seed, step.scale, step.layer):
            mixed = _mix(mixed + number)
        tokens = torch.arange(step.tokens, device=self.device)
        return (_mix(mixed[:, None] + tokens * _STEP) & (1 << _SCORE_BITS) - 1).float()


def _mix(x: Tensor) -> Tensor:
    """The finalizer of splitmix64: int64 -> int64 of the same shape, modulo 2^64."""
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right, which torch has for no signed type."""
    return (x >> bits) & ((1 << 64 - bits) - 1)
