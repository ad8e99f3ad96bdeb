"""The float64 oracle and the bound that every implementation is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.kernels.reference import attention_entropy_reference

Bias = Tensor | None


def quantised(*shape: int, dtype: torch.dtype, seed: int, scale: float = 1.0, device: str = "cpu") -> Tensor:
    """Normal numbers, rounded to ``dtype``: the oracle then sees the very inputs that the kernel sees."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype).to(device)


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Bias, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and entropy as one writes them by hand, in the inputs' own precision."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.transpose(-1, -2) * scale
    if bias is not None:
        logits = (
            logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias.to(q.dtype)
        )
    weights = torch.softmax(logits, -1)
    log_weights = torch.log_softmax(logits.float(), -1)
    rows = weights.float()
    entropy = -torch.where(rows > 0, rows * log_weights, 0.0).sum(-1)
    return weights @ v, entropy


def check(out: Tensor, entropy: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, scale: float) -> None:
    """At most twice the error of the plain computation, plus one rounding of the largest value."""
    if out.numel() == 0:
        return
    wide = [t.double() for t in (q, k, v)]
    wide_bias = bias if bias is None or bias.dtype == torch.bool else bias.double()
    exact_out, exact_entropy = attention_entropy_reference(*wide, wide_bias, scale)
    plain_out, plain_entropy = plain(q, k, v, bias, scale)
    for name, got, exact, by_hand, eps in (
        ("out", out, exact_out, plain_out, torch.finfo(q.dtype).eps),
        ("entropy", entropy, exact_entropy, plain_entropy, torch.finfo(torch.float32).eps),
    ):
        assert got.isfinite().all(), f"{name} is not finite"
        bound = 2 * _worst(by_hand, exact) + eps * float(exact.abs().max())
        assert _worst(got, exact) <= bound, f"{name}: error {_worst(got, exact):.3g} exceeds {bound:.3g}"


def _worst(got: Tensor, exact: Tensor) -> float:
    # Fully masked rows are NaN when computed by hand; the other rows set the bound.
    return float((got.double() - exact).abs().nan_to_num(0.0).max())
