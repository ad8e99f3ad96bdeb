"""Random numbers of tokens that are the same in a batch and alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toprovar_compiler.policies.base import Step

NOISE_BITS = 24  # a float32 holds every integer of so many bits
# Odd constants of the splitmix64 generator, as signed 64-bit numbers.
_STEP, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class TokenNoise:
    """A hash, computed where the codes are: no generator whose state a batch would share.

    The numbers of a sample depend on the seed and on the codes of its scales so far. Where codes are not
    seen, all samples share their numbers.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed % (1 << 63)
        self._digest: Tensor | None = None

    def start_generation(self) -> None:
        self._digest = None

    def observe_codes(self, codes: Tensor) -> None:
        """Takes the codes [samples, N] of the running scale into each sample's digest [samples]."""
        places = torch.arange(codes.shape[1], device=codes.device)
        earlier = torch.zeros_like(codes[:, 0]) if self._digest is None else self._digest
        self._digest = _mix(_mix(codes.long() + places * _STEP).sum(1) + earlier)

    def numbers(self, step: Step, salts: Sequence[int], device: torch.device) -> Tensor:
        """Whole numbers [samples, N] int64, uniform in [0, 2^24), others for other ``salts``."""
        digest = self._digest
        if digest is None or digest.shape[0] != step.samples:
            digest = torch.zeros(step.samples, dtype=torch.int64)
        mixed = digest.to(device)
        for number in (self._seed, *salts):
            mixed = _mix(mixed + number)
        tokens = torch.arange(step.tokens, device=device)
        return _mix(mixed[:, None] + tokens * _STEP) & (1 << NOISE_BITS) - 1


def _mix(x: Tensor) -> Tensor:
    """The finalizer of splitmix64: int64 -> int64 of the same shape, modulo 2^64."""
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right, which torch has for no signed type."""
    return (x >> bits) & ((1 << 64 - bits) - 1)
