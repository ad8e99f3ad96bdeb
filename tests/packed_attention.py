"""An operator for packed attention with the name and arguments of ``flash_attn``'s, which needs a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

NAME = "flash_attn::_flash_attn_varlen_forward"
_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, "
    "SymInt max_seqlen_k, float dropout_p, float softmax_scale, bool causal, SymInt window_size_left=-1, "
    "SymInt window_size_right=-1) -> (Tensor, Tensor)"
)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    begins_q: Tensor,
    begins_k: Tensor,
    longest_q: int,
    longest_k: int,
    dropout: float,
    scale: float,
    causal: bool,
    left: int = -1,
    right: int = -1,
) -> tuple[Tensor, Tensor]:
    """Each sequence by itself, in one thread; the second result is the row's normaliser."""
    assert (causal, dropout, left, right) == (False, 0.0, -1, -1), "nothing else is written here"
    assert begins_q[-1] == len(q), "sequences must fill the queries"
    assert begins_k[-1] <= len(k), "and lie within the keys: others may lie behind, as for flash_attn"
    results, normalisers = [], []
    for sample in range(len(begins_q) - 1):
        queries = q[begins_q[sample] : begins_q[sample + 1]].transpose(0, 1)
        keys = k[begins_k[sample] : begins_k[sample + 1]].transpose(0, 1)
        values = v[begins_k[sample] : begins_k[sample + 1]].transpose(0, 1)
        assert queries.shape[1] <= longest_q
        assert keys.shape[1] <= longest_k
        scores = queries @ keys.mT * scale
        results.append((scores.softmax(-1) @ values).transpose(0, 1))
        normalisers.append(scores.logsumexp(-1))
    return torch.cat(results).contiguous(), torch.cat(normalisers, 1).contiguous()


def _shapes(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])


if not hasattr(torch.ops.flash_attn, "_flash_attn_varlen_forward"):
    torch.library.define(NAME, _SCHEMA)
    torch.library.impl(NAME, "CPU", _forward)
    torch.library.register_fake(NAME, _shapes)


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, begins_k: Tensor, longest_k: int, **changed: object
) -> Tensor:
    """q [B, N, H, D] over packed keys [T, H, D]; sample b attends to rows begins_k[b] to begins_k[b + 1]."""
    samples, tokens, heads, width = q.shape
    begins_q = torch.arange(0, tokens * (samples + 1), tokens, dtype=torch.int32)
    arguments = {"dropout_p": 0.0, "softmax_scale": width**-0.5, "causal": False} | changed
    packed = q.reshape(-1, heads, width)
    operator = torch.ops.flash_attn._flash_attn_varlen_forward.default
    out = operator(packed, k, v, begins_q, begins_k, tokens, longest_k, **arguments)[0]
    return out.reshape(samples, tokens, -1)
