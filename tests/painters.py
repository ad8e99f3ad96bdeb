"""Functions for ``toprovar --model tests.painters:NAME``: a small random model, and broken ones."""

from __future__ import annotations

import torch
from torch import nn

from examples.emojivar.config import SMOKE
from examples.emojivar.model import EmojiVAR


def small(device: torch.device, dtype: torch.dtype) -> EmojiVAR:
    """The embedded model at its smallest: four scales of 1, 4, 16 and 64 tokens, two blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EmojiVAR(SMOKE)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(device, dtype).eval().requires_grad_(False)


def failing(device: torch.device, dtype: torch.dtype) -> nn.Module:
    raise RuntimeError(f"weights file a.safetensors\nis missing ({device}, {dtype})")


def no_generate(device: torch.device, dtype: torch.dtype) -> nn.Module:
    return nn.Linear(2, 2)


class _Logits(nn.Linear):
    def generate(self, prompts: list[str], seed: int) -> torch.Tensor:
        return torch.zeros(len(prompts), seed + 1)


def no_blocks(device: torch.device, dtype: torch.dtype) -> nn.Module:
    return _Logits(2, 2, device=device, dtype=dtype)


NOT_A_FUNCTION = 1
