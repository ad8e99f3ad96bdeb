"""The float64 oracle and the bound that every implementation is held to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from toprovar_compiler.kernels.reference import attention_entropy_reference

Bias = Tensor | None
ORDERS = 4


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


def orders(
    q: Tensor, k: Tensor, v: Tensor, bias: Bias
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """The operands with keys and head dimensions in other orders: the same attention, summed differently."""
    yield q, k, v, bias
    generator = torch.Generator().manual_seed(0)
    for _ in range(ORDERS - 1):
        dims = torch.randperm(q.shape[3], generator=generator).to(q.device)
        keys = torch.randperm(k.shape[2], generator=generator).to(q.device)
        moved = bias[..., keys] if bias is not None and bias.shape[-1] == len(keys) else bias
        yield q[..., dims], k[:, :, keys][..., dims], v[:, :, keys], moved


def check(out: Tensor, entropy: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, scale: float) -> None:
    """At most twice the error of the plain computation, plus one rounding of the largest value.

    The plain error is the worst over a few orders of its sums. Of one order it is a matter of luck where
    there are few rows: for one query of four heads it differs twofold between orders that are all as good.
    """
    if out.numel() == 0:
        return
    wide = [t.double() for t in (q, k, v)]
    wide_bias = bias if bias is None or bias.dtype == torch.bool else bias.double()
    exact = attention_entropy_reference(*wide, wide_bias, scale)
    by_hand = [plain(*operands, scale) for operands in orders(q, k, v, bias)]
    for part, name, got, eps in (
        (0, "out", out, torch.finfo(q.dtype).eps),
        (1, "entropy", entropy, torch.finfo(torch.float32).eps),
    ):
        assert got.isfinite().all(), f"{name} is not finite"
        error = max(_worst(hand[part], exact[part]) for hand in by_hand)
        bound = 2 * error + eps * float(exact[part].abs().max())
        worst = _worst(got, exact[part])
        assert worst <= bound, f"{name}: error {worst:.3g} exceeds {bound:.3g}"


def _worst(got: Tensor, exact: Tensor) -> float:
    # Fully masked rows are NaN when computed by hand; the other rows set the bound.
    return float((got.double() - exact).abs().nan_to_num(0.0).max())
