"""The repeated transformer block, and the text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import INITIAL_SCALE, CrossAttention, SelfAttention
from .layers import at_least_float32, merge_heads, rms_norm, split_heads, unit

MLP_RATIO = 4
TEXT_DEPTH = 2


class FeedForward(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate
        self.up = nn.Linear(width, MLP_RATIO * width)
        self.down = nn.Linear(MLP_RATIO * width, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]`` -> ``[..., C]``."""
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class Block(nn.Module):
    """Self-attention, cross-attention and MLP; the first and last are modulated by the prompt (AdaLN)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.cross = CrossAttention(width, heads)
        self.mlp = FeedForward(width, approximate="tanh")
        # scale, shift and gate of the attention, then of the MLP; the prompt's modulation is added to them
        self.modulation = nn.Parameter(torch.zeros(6, width))
        with torch.no_grad():
            self.modulation[2::3] = 1

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        modulation: Tensor,
        cos: Tensor,
        sin: Tensor,
        ends: Sequence[int] | None = None,
    ) -> Tensor:
        """``x`` ``[B, N, C]`` -> ``[B, N, C]`` in the same dtype.

        Args:
            x: one scale's tokens, or with ``ends`` those of all scales.
            context: prompt tokens ``[B, T, C]``.
            modulation: ``[B, 6, C]``, shared by all blocks.
            cos, sin: rotary tables ``[N, D / 2]`` of the tokens in ``x``.
            ends: see :class:`~examples.emojivar.attention.SelfAttention`.
        """
        parts = (at_least_float32(modulation) + self.modulation).unsqueeze(2).unbind(1)
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = parts
        h = (rms_norm(x) * (1 + scale_a) + shift_a).to(x.dtype)
        x = x + (gate_a * self.attn(h, cos, sin, ends)).to(x.dtype)
        x = x + self.cross(rms_norm(x).to(x.dtype), context)
        h = (rms_norm(x) * (1 + scale_m) + shift_m).to(x.dtype)
        return x + (gate_m * self.mlp(h)).to(x.dtype)


class TextBlock(nn.Module):
    """A plain pre-norm block over the prompt's words."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, C]`` -> ``[B, T, C]``."""
        qkv = self.qkv(rms_norm(x).to(x.dtype)).chunk(3, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in qkv)
        q = (unit(q) * INITIAL_SCALE).to(v.dtype)
        k = unit(k).to(v.dtype)
        x = x + self.out(merge_heads(F.scaled_dot_product_attention(q, k, v, scale=1.0)))
        return x + self.mlp(rms_norm(x).to(x.dtype))


class TextEncoder(nn.Module):
    """Word ids to context tokens and one pooled vector. Padding is id 0 and is attended to like a word."""

    def __init__(self, vocabulary_size: int, prompt_length: int, width: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Parameter(torch.randn(prompt_length, width) * 0.02)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(TEXT_DEPTH))
        with torch.no_grad():
            self.words.weight.mul_(0.5)

    def forward(self, word_ids: Tensor) -> tuple[Tensor, Tensor]:
        """``word_ids`` ``[B, T]`` int64 -> context ``[B, T, C]`` and pooled ``[B, C]``."""
        x = self.words(word_ids) + self.positions
        for block in self.blocks:
            x = block(x)
        x = rms_norm(x)
        dtype = self.words.weight.dtype
        return x.to(dtype), x.mean(1).to(dtype)
