"""Ways to write cross-attention from the tokens to the prompt or a memory, for random programs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.property.attentions import SCALE
from tests.property.ops import Env


def _text(q: Tensor, env: Env) -> tuple[Tensor, Tensor]:
    k, v = (
        F.linear(env["text"], env["w_text"]).unflatten(-1, (2 * q.shape[1], -1)).transpose(1, 2).chunk(2, 1)
    )
    return k, v


def _cross_text(q: Tensor, env: Env, table: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, *_text(q, env))


def _cross_hand(q: Tensor, env: Env, table: Tensor | None) -> Tensor:
    k, v = _text(q, env)
    return (q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v


def _cross_text_mask(q: Tensor, env: Env, table: Tensor | None) -> Tensor:
    seen = env["text"][:, None, None, :, 0] > -9
    return F.scaled_dot_product_attention(q, *_text(q, env), attn_mask=seen)


def _cross_token_mask(q: Tensor, env: Env, table: Tensor | None) -> Tensor:
    """A bias [N, L] that differs from token to token."""
    assert table is not None
    bias = table[..., :1] * env["buffer"][: env["text"].shape[1], 0]
    return F.scaled_dot_product_attention(q, *_text(q, env), attn_mask=bias)


def _cross_sample_mask(q: Tensor, env: Env, table: Tensor | None) -> Tensor:
    """A bias [B, 1, N, L] that differs from sample to sample, too."""
    assert table is not None
    bias = table[..., :1] * env["text"][:, None, None, :, 0]
    k, v = _text(q, env)
    return (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v


def _cross_shared(q: Tensor, env: Env, table: Tensor | None) -> Tensor:
    """Keys and values made of N positions, without the stream: all of them stay, whatever is pruned."""
    position = torch.arange(env.total, dtype=q.dtype)
    keys = (position[:, None] * 0.3 + torch.arange(q.shape[-1], dtype=q.dtype)).cos()
    keys = keys.expand(q.shape[0], q.shape[1], -1, -1)
    return F.scaled_dot_product_attention(q, keys, keys.sin())


def _cross_memory(q: Tensor, env: Env, table: Tensor | None) -> Tensor:
    """Learned keys [M, D], hand-written: one set for all samples and heads."""
    memory = env["memory"]
    return (q @ memory.transpose(0, 1)).softmax(-1) @ memory


def _cross_memory_heads(q: Tensor, env: Env, table: Tensor | None) -> Tensor:
    memory = env["memory"].expand(1, q.shape[1], -1, -1)
    return (q @ memory.transpose(2, 3)).softmax(-1) @ memory


CROSS: dict[str, Callable[[Tensor, Env, Tensor | None], Tensor]] = {
    "text": _cross_text,
    "text_hand": _cross_hand,
    "text_mask": _cross_text_mask,
    "token_mask": _cross_token_mask,
    "sample_mask": _cross_sample_mask,
    "shared": _cross_shared,
    "memory": _cross_memory,
    "memory_heads": _cross_memory_heads,
}
