"""Toys that paint, for ``toprovar --model tests.toy_painters:NAME``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.toy_generators import ClassVAR, MixingVAR, make

SIDE = 24
SCALES, LAYERS = 5, 3


class Painting:
    """Prompts stand for classes by their length; features become colours."""

    def generate(self: Any, prompts: Sequence[str], seed: int = 0) -> Tensor:
        """Pictures [B, 3, 24, 24] in [0, 1]."""
        labels = torch.tensor([(len(prompt) + seed) % self.classes for prompt in prompts])
        features = self.autoregressive_infer_cfg(labels)
        return F.interpolate(torch.sigmoid(features[:, :3]), size=(SIDE, SIDE), mode="nearest")


class PaintingVAR(Painting, ClassVAR):
    pass


class PaintingMixingVAR(Painting, MixingVAR):
    pass


class _Nothing(PaintingVAR):
    def generate(self, prompts: Sequence[str], seed: int = 0) -> Tensor:
        return super().generate(prompts, seed)[:0]


class _Broken(PaintingVAR):
    def generate(self, prompts: Sequence[str], seed: int = 0) -> Tensor:
        return super().generate(prompts, seed).index_fill(2, torch.tensor([0]), torch.nan)


@functools.cache
def _made(kind: type[nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """One for all tests: its graphs are captured once."""
    return make(kind, dtype=dtype).to(device)


def toy(device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Five scales of 1 to 36 tokens, three blocks; the last three scales are pruned by default."""
    return _made(PaintingVAR, device, dtype)


def mixing(device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Its blocks mix tokens and cannot be pruned."""
    return _made(PaintingMixingVAR, device, dtype)


def nothing(device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Gives no picture for a prompt."""
    return _made(_Nothing, device, dtype)


def broken(device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Its pictures have a line of NaN."""
    return _made(_Broken, device, dtype)
