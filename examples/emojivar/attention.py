"""Self-attention with a growing key/value cache, and cross-attention to the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import at_least_float32, merge_heads, rotate, split_heads, unit

INITIAL_SCALE = 8.0  # of the attention logits; queries and keys have length one
LARGEST_LOG_SCALE = 4.6
MASKED_PREFIX_TOKENS = 160  # scales that end within this many tokens share one masked attention call


def block_causal_attention(q: Tensor, k: Tensor, v: Tensor, ends: Sequence[int]) -> Tensor:
    """Attention in which a token sees its own scale and all scales before it.

    The short scales go through one masked call; every later scale is one unmasked call over its prefix,
    which is what generation with a cache computes, and which needs no mask of L x L.

    Args:
        q, k, v: ``[B, H, L, D]``, the tokens of all scales in generation order.
        ends: the index after each scale's last token; ``ends[-1] == L``.

    Returns:
        ``[B, H, L, D]``.
    """
    short = [end for end in ends if end <= MASKED_PREFIX_TOKENS] or [ends[0]]
    prefix = short[-1]
    place = torch.arange(prefix, device=q.device)
    # compared with numbers, as a tensor of them would be copied to the device in every block
    scale_of = torch.stack([place >= end for end in short]).sum(0)
    mask = scale_of[:, None] >= scale_of[None, :]
    parts = [
        F.scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], mask, scale=1.0)
    ]
    for begin, end in pairwise(ends[len(short) - 1 :]):
        parts.append(
            F.scaled_dot_product_attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], scale=1.0)
        )
    return torch.cat(parts, dim=2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with unit queries and keys, a learnt scale per head, and 2D rope.

    With ``kv_caching(True)`` each call appends its keys and values to ``cached_k`` and ``cached_v``
    (``[B, H, Nk, D]``) and attends to all of them; ``kv_caching(False)`` forgets them.
    """

    cached_k: Tensor | None
    cached_v: Tensor | None

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(INITIAL_SCALE)))
        nn.init.zeros_(self.out.weight)
        self.kv_caching(False)

    def kv_caching(self, enable: bool) -> None:
        """Start (``True``) or stop (``False``) caching; both drop what was cached."""
        self.caching, self.cached_k, self.cached_v = enable, None, None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, ends: Sequence[int] | None = None) -> Tensor:
        """``x`` ``[B, N, C]`` -> ``[B, N, C]``.

        Args:
            x: one scale's tokens, or with ``ends`` those of all scales (teacher forcing, no cache).
            cos, sin: ``[N, D / 2]`` of the tokens' positions.
            ends: the index after each scale's last token, or None.
        """
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        scale = at_least_float32(self.log_scale).clamp(max=LARGEST_LOG_SCALE).exp()
        q = rotate(unit(q) * scale, cos, sin).to(v.dtype)
        k = rotate(unit(k), cos, sin).to(v.dtype)
        if ends is not None:
            return self.out(merge_heads(block_causal_attention(q, k, v, ends)))
        if self.caching:
            if self.cached_k is None:
                self.cached_k, self.cached_v = k, v
            else:
                k = self.cached_k = torch.cat((self.cached_k, k), dim=2)
                v = self.cached_v = torch.cat((self.cached_v, v), dim=2)
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v, scale=1.0)))


class CrossAttention(nn.Module):
    """Multi-head attention from image tokens to prompt tokens, with unit queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(INITIAL_SCALE)))
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Image tokens ``x`` ``[B, N, C]`` and prompt tokens ``context`` ``[B, T, C]`` -> ``[B, N, C]``."""
        q = split_heads(self.query(x), self.heads)
        k, v = (split_heads(part, self.heads) for part in self.key_value(context).chunk(2, dim=-1))
        scale = at_least_float32(self.log_scale).clamp(max=LARGEST_LOG_SCALE).exp()
        q = (unit(q) * scale).to(v.dtype)
        k = unit(k).to(v.dtype)
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v, scale=1.0)))
