"""The entropy of attention by its definition, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax_entropy(q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """[B, H, Nq], nats, by definition: the oracle."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = q.double() @ k.double().transpose(-1, -2) * scale
    if bias is not None:
        logits = logits.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else logits + bias.double()
    p = logits.softmax(-1)
    return -torch.special.xlogy(p, p).sum(-1)
