"""Ways to write attention, for random programs: some to be matched, some to be left alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.property.ops import Env

Attend = Callable[[Tensor, Tensor, Tensor, Env], Tensor]

SCALE = 0.7
DROPOUT = 0.3
_EINSUM = ("bhnd,bhmd->bhnm", "bhnm,bhmd->bhnd")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, q.shape[-1] ** -0.5)
    return F.scaled_dot_product_attention(q, k, v)


def _sdpa_scale(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, SCALE)
    return F.scaled_dot_product_attention(q, k, v, scale=SCALE, dropout_p=0.0)


def _hand(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, SCALE)
    return ((q @ k.transpose(-2, -1)) * SCALE).softmax(-1) @ v


def _hand_permute(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, 1.0)
    return torch.matmul(torch.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)), 3), v)


def _hand_scale_query(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, SCALE)
    return F.softmax((q * SCALE) @ k.mT, dim=-1) @ v


def _hand_divide(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, 2.0 / math.sqrt(q.shape[-1]))
    return (2 * (q @ k.transpose(2, 3)) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def _hand_row_bias(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, SCALE)
    return (q @ k.transpose(-2, -1) * SCALE + env["row_bias"]).softmax(-1) @ v


def _hand_keep(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, SCALE)
    scores = (q @ k.transpose(-2, -1) * SCALE).masked_fill(env["row_bias"] > 9, -math.inf)
    return scores.softmax(-1) @ v


def _hand_float_softmax(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, SCALE)
    return F.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1, dtype=torch.float64).to(q.dtype) @ v


def _hand_dropout_off(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, 1.0)
    return F.dropout((q @ k.transpose(-2, -1)).softmax(-1), DROPOUT, training=False) @ v


def _sdpa_row_bias(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, q.shape[-1] ** -0.5)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=env["row_bias"])


def _hand_bias_first(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, SCALE)
    bias = env["b0"][: q.shape[1], None, None] * 0.2
    return (bias + q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v


def _hand_number(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, SCALE)
    return (q @ k.transpose(-2, -1) * SCALE + 2.0).softmax(-1) @ v


def _hand_query_is_key(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    """Where there is no cache, one tensor is query, key and value."""
    if q.shape[2] != k.shape[2]:
        return _hand(q, k, v, env)
    return _hand(q, q, q, env)


def _gqa(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    env.observe(q, k, q.shape[-1] ** -0.5)
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _repeat_kv(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    def repeated(t: Tensor) -> Tensor:
        b, h, n, d = t.shape
        groups = q.shape[1] // h
        return t[:, :, None, :, :].expand(b, h, groups, n, d).reshape(b, h * groups, n, d)

    return _sdpa(q, repeated(k), repeated(v), env)


def _repeat_interleave(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    return _hand(q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, 1), env)


def _hand_broadcast(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    return _hand(q, k[:, :1], v[:, :1], env)


SUPPORTED: dict[str, Attend] = {
    "sdpa": _sdpa,
    "sdpa_scale": _sdpa_scale,
    "hand": _hand,
    "hand_permute": _hand_permute,
    "hand_scale_query": _hand_scale_query,
    "hand_divide": _hand_divide,
    "hand_row_bias": _hand_row_bias,
    "hand_keep": _hand_keep,
    "hand_float_softmax": _hand_float_softmax,
    "hand_dropout_off": _hand_dropout_off,
    "sdpa_row_bias": _sdpa_row_bias,
    "hand_bias_first": _hand_bias_first,
    "hand_number": _hand_number,
    "hand_query_is_key": _hand_query_is_key,
}
GROUPED: dict[str, Attend] = {
    "gqa": _gqa,
    "repeat_kv": _repeat_kv,
    "repeat_interleave": _repeat_interleave,
    "hand_broadcast": _hand_broadcast,
}


def _causal(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _key_mask(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    mask = torch.arange(k.shape[2]) % 3 != 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None, None])


def _square_bias(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    bias = (torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])).to(q.dtype) * 0.2
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _hand_square_bias(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    bias = (torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])).to(q.dtype) * 0.2
    return (bias + q @ k.transpose(-2, -1)).softmax(-1) @ v


def _hand_triangle(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    offset = k.shape[2] - q.shape[2]
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1 + offset)
    return (q @ k.transpose(-2, -1)).masked_fill(hidden, -math.inf).softmax(-1) @ v


def _shared_scores(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    return scores.softmax(-1) @ v + scores.mean(-1, keepdim=True)


def _shared_weights(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return weights @ v + weights.amax(-1, keepdim=True)


def _returned_weights(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    env.extras.append(weights)
    return weights @ v


def _softmax_rows(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-2) @ v


def _fill_finite(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    scores = (q @ k.transpose(-2, -1)).masked_fill(env["row_bias"] > 0, -5.0)
    return scores.softmax(-1) @ v


def _einsum(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    scores = torch.einsum(_EINSUM[0], q, k) * SCALE
    return torch.einsum(_EINSUM[1], scores.softmax(-1), v)


def _merged_bmm(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    flat = [t.reshape(-1, t.shape[2], t.shape[3]) for t in (q, k, v)]
    out = torch.bmm(torch.bmm(flat[0], flat[1].transpose(1, 2)).softmax(-1), flat[2])
    return out.view(q.shape)


def _hand_where(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    return torch.where(env["row_bias"] > 9, -math.inf, scores).softmax(-1) @ v


def _head_swap(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    """Heads in the place of samples: right shapes wherever B == H."""
    if q.shape[0] != q.shape[1]:
        return _sdpa(q, k, v, env)
    return F.scaled_dot_product_attention(q, k.transpose(0, 1), v.transpose(0, 1))


def _local(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :, -2:], v[:, :, -2:])


def _tokens_as_heads(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k[:, :, -q.shape[2] :], v[:, :, -q.shape[2] :]))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _rank3(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    """Heads one after another, each [B, N, D]."""
    return torch.stack(
        [F.scaled_dot_product_attention(q[:, h], k[:, h], v[:, h]) for h in range(q.shape[1])], 1
    )


def _rank3_mask(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    mask = torch.arange(q.shape[2], dtype=q.dtype)[:, None].cos()
    return torch.stack(
        [F.scaled_dot_product_attention(q[:, h], k[:, h], v[:, h], mask) for h in range(q.shape[1])], 1
    )


def _keys_reversed(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    """Keys and values out of step: attention then minds their order."""
    return F.scaled_dot_product_attention(q, k.flip(2), v)


def _dropout(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=DROPOUT)


def _hand_dropout(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    return F.dropout((q @ k.transpose(-2, -1)).softmax(-1), DROPOUT, training=True) @ v


def _linear_attention(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    return q.softmax(-1) @ (k.transpose(-2, -1) @ v)


def _softcap(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    return (torch.tanh(q @ k.transpose(-2, -1)) * 3.0).softmax(-1) @ v


def _scale_after_bias(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    return ((q @ k.transpose(-2, -1) + env["row_bias"]) * SCALE).softmax(-1) @ v


def _head_scale(q: Tensor, k: Tensor, v: Tensor, env: Env) -> Tensor:
    scale = env["cond"][:, :1, None, None].sigmoid()
    return (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v


MIXING: dict[str, Attend] = {
    "causal": _causal,
    "softmax_rows": _softmax_rows,
    "local": _local,
    "keys_reversed": _keys_reversed,
    "dropout": _dropout,
    "hand_dropout": _hand_dropout,
    "linear_attention": _linear_attention,
    "square_bias": _square_bias,
    "hand_square_bias": _hand_square_bias,
    "hand_triangle": _hand_triangle,
    "key_mask": _key_mask,
}
UNSURE: dict[str, Attend] = {
    "shared_scores": _shared_scores,
    "shared_weights": _shared_weights,
    "returned_weights": _returned_weights,
    "fill_finite": _fill_finite,
    "einsum": _einsum,
    "merged_bmm": _merged_bmm,
    "hand_where": _hand_where,
    "head_swap": _head_swap,
    "tokens_as_heads": _tokens_as_heads,
    "rank3": _rank3,
    "rank3_mask": _rank3_mask,
    "softcap": _softcap,
    "scale_after_bias": _scale_after_bias,
    "head_scale": _head_scale,
}
ATTEND: dict[str, Attend] = {**SUPPORTED, **GROUPED, **MIXING, **UNSURE}
