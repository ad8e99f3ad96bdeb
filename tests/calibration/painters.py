"""Toys for ``toprovar calibrate``, in float64 whatever was asked for, and what they are asked to paint."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from tests.toy_generators import make
from tests.toy_painters import PaintingMixingVAR, PaintingVAR

SIDES = (1, 2, 4, 6, 8)
SCHEDULE = tuple(side * side for side in SIDES)
LAYERS, HEADS = 3, 4
PROMPTS = ("a", "ab", "abcd", "abcde", "abcdefg")
SEED, BATCH = 3, 2


@functools.cache
def _made(kind: Any, sides: tuple[int, ...] = SIDES) -> Any:
    return make(kind, dtype=torch.float64, patch_nums=sides)


def plain(device: torch.device, dtype: torch.dtype) -> Any:
    """Scales of 1, 4, 16, 36 and 64 tokens, of which the last two can be pruned, and three blocks."""
    return _made(PaintingVAR)


def mixing(device: torch.device, dtype: torch.dtype) -> Any:
    """Its blocks mix tokens: they give no entropy."""
    return _made(PaintingMixingVAR, (1, 2, 4))


def two_scales(device: torch.device, dtype: torch.dtype) -> Any:
    return _made(PaintingVAR, (1, 4))


def level(device: torch.device, dtype: torch.dtype) -> Any:
    """Two scales of one size."""
    return _made(PaintingVAR, (1, 4, 4))


class _Unstated(PaintingVAR):
    """Its schedule is no sequence of numbers that anybody could know of."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_nums = [float(side) for side in self.patch_nums]  # type: ignore[assignment]


def unstated(device: torch.device, dtype: torch.dtype) -> Any:
    return make(_Unstated, dtype=torch.float64)


class _Failing(PaintingVAR):
    """Its own code fails at one prompt."""

    def generate(self, prompts: Sequence[str], seed: int = 0) -> torch.Tensor:
        if "abcd" in prompts:
            raise KeyError("no such word: abcd")
        return super().generate(prompts, seed)


def failing(device: torch.device, dtype: torch.dtype) -> Any:
    return _made(_Failing)


class _Broken(PaintingVAR):
    """Its pictures have NaN."""

    def generate(self, prompts: Sequence[str], seed: int = 0) -> torch.Tensor:
        return super().generate(prompts, seed) * torch.nan


def broken(device: torch.device, dtype: torch.dtype) -> Any:
    return _made(_Broken)


class _Stamps(PaintingVAR):
    """Its pictures are too small to compare."""

    def generate(self, prompts: Sequence[str], seed: int = 0) -> torch.Tensor:
        return super().generate(prompts, seed)[..., :4, :4]


def stamps(device: torch.device, dtype: torch.dtype) -> Any:
    return _made(_Stamps)


class _Overstated(PaintingVAR):
    """Runs other scales than it states."""

    runs = (2, 6, 9)

    def generate(self, prompts: Sequence[str], seed: int = 0) -> torch.Tensor:
        stated, self.patch_nums = self.patch_nums, self.runs
        try:
            return super().generate(prompts, seed)
        finally:
            self.patch_nums = stated


def overstated(device: torch.device, dtype: torch.dtype) -> Any:
    return _made(_Overstated)


class _OneScale(_Overstated):
    """Runs all tokens at once."""

    runs = (11,)


def one_scale(device: torch.device, dtype: torch.dtype) -> Any:
    return _made(_OneScale)
