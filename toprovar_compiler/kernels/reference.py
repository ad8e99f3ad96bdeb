"""Naive attention with entropy: the definition that every implementation is tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_entropy_reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and the entropy of its rows, with the full matrix in memory.

    Equation 2 of the paper: `a = softmax(q k^T * scale + bias)`, `H_i = -sum_j a_ij log a_ij` in nats, with
    `0 log 0 = 0`. A row whose logits are all -inf (fully masked, or no keys at all) gives out 0 and H 0.
    A NaN or +inf logit makes its own row NaN. The streaming forms in this folder use that with
    `m = max_j s_j`, `l = sum_j e^(s_j - m)` and `e = sum_j e^(s_j - m) (s_j - m)` the same entropy is
    `log l - e / l`; moving the reference from m to m' turns l into `c l` and e into `c (e + (m - m') l)`,
    `c = e^(m - m')`.

    q `[B, H, Nq, D]`, k `[B, Hkv, Nk, D]`, v `[B, Hkv, Nk, Dv]`, bias bool (True = attend) or floating,
    broadcastable to `[B, H, Nq, Nk]`. Computes in float64 for float64 inputs, else in float32.
    Returns out `[B, H, Nq, Dv]` in q's dtype and entropy `[B, H, Nq]` in the dtype of the computation.
    """
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[1] // max(k.shape[1], 1)
    keys = k.to(compute).repeat_interleave(group, 1)
    values = v.to(compute).repeat_interleave(group, 1)
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    logits = q.to(compute) @ keys.transpose(-1, -2) * factor
    if bias is not None and bias.dtype == torch.bool:
        logits = logits.masked_fill(bias.logical_not(), -math.inf)
    elif bias is not None:
        logits = logits + bias.to(compute)
    dead = (logits == -math.inf).all(-1)
    weights = logits.softmax(-1)
    terms = torch.where(weights == 0, 0.0, weights * logits.log_softmax(-1))
    entropy = terms.sum(-1).neg().masked_fill(dead, 0.0)
    out = (weights @ values).masked_fill(dead.unsqueeze(-1), 0.0)
    return out.to(q.dtype), entropy
