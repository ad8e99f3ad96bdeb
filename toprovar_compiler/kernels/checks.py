"""Input checks shared by every implementation of the ops and by their fakes.

One function an op, so that a wrong call fails with the same words on CPU, on CUDA, in the reference and
while a graph is traced. They read metadata only, compare before they format, and cost one to two
microseconds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from toprovar_compiler.errors import GradientNotSupportedError, KernelInputError

MAX_HEAD_SIZE = 256
DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))

_OP = "toprovar::flash_attention_entropy"
_GATE = "toprovar::entropy_gate"


def check_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> None:
    """Raise unless the arguments of `flash_attention_entropy` are ones that it is defined for.

    q `[B, H, Nq, D]`, k `[B, Hkv, Nk, D]`, v `[B, Hkv, Nk, Dv]`, bias bool or floating and broadcastable
    to `[B, H, Nq, Nk]`, scale finite or None.

    Raises:
        KernelInputError: a wrong rank, shape, dtype, device or scale.
        GradientNotSupportedError: grad mode is on and an input requires grad.
    """
    q_shape, k_shape, v_shape = q.shape, k.shape, v.shape
    if len(q_shape) != 4 or len(k_shape) != 4 or len(v_shape) != 4:
        raise KernelInputError(
            f"{_OP} requires q, k and v of rank 4 ([B, H, N, D]), got ranks {len(q_shape)}, {len(k_shape)} "
            f"and {len(v_shape)}; add or merge dimensions first"
        )
    batch, heads, queries, head_size = q_shape
    k_batch, kv_heads, keys, k_head_size = k_shape
    v_batch, v_heads, v_keys, value_size = v_shape
    if k_batch != batch or v_batch != batch:
        raise KernelInputError(
            f"{_OP} requires one batch size, got {batch} in q, {k_batch} in k and {v_batch} in v; "
            "expand k and v to q's batch"
        )
    if v_heads != kv_heads or v_keys != keys:
        raise KernelInputError(
            f"{_OP} requires k and v with the same heads and length, got k {_shape(k)} and v {_shape(v)}; "
            "pass the keys and values of the same tokens"
        )
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads != 0):
        raise KernelInputError(
            f"{_OP} requires the number of query heads to be a multiple of the key heads, got {heads} and "
            f"{kv_heads}; repeat or regroup the heads"
        )
    if k_head_size != head_size:
        raise KernelInputError(
            f"{_OP} requires q and k with the same head size, got {head_size} and {k_head_size}; "
            "project both to one size"
        )
    if not (1 <= head_size <= MAX_HEAD_SIZE and 1 <= value_size <= MAX_HEAD_SIZE):
        raise KernelInputError(
            f"{_OP} requires head sizes from 1 to {MAX_HEAD_SIZE}, got {head_size} in q and k and "
            f"{value_size} in v; split wider heads or use torch's scaled_dot_product_attention"
        )
    _check_types(q, k, v)
    if bias is not None:
        _check_bias(q, bias, (batch, heads, queries, keys))
    if scale is not None and not math.isfinite(scale):
        raise KernelInputError(f"{_OP} requires a finite scale, got {scale}; pass None for 1/sqrt(D)")
    if torch.is_grad_enabled():
        refuse_gradients(q, k, v, bias)


def check_gate(entropy: Tensor, keep: int) -> None:
    """Raise unless entropy is floating `[G, N]` and `0 <= keep <= N`.

    Raises:
        KernelInputError: a wrong rank or dtype, or keep out of range.
    """
    shape = entropy.shape
    if len(shape) != 2:
        raise KernelInputError(
            f"{_GATE} requires an entropy map of rank 2 ([G, N]), got {_shape(entropy)}; "
            "average the heads and flatten the grid first"
        )
    if not entropy.dtype.is_floating_point:
        raise KernelInputError(
            f"{_GATE} requires a floating entropy map, got {entropy.dtype}; convert it to torch.float32"
        )
    if keep < 0 or keep > shape[1]:
        raise KernelInputError(
            f"{_GATE} requires keep between 0 and the {shape[1]} tokens of a row, got {keep}; clip it first"
        )


def _check_types(q: Tensor, k: Tensor, v: Tensor) -> None:
    dtype = q.dtype
    if dtype not in DTYPES or k.dtype != dtype or v.dtype != dtype:
        raise KernelInputError(
            f"{_OP} requires q, k and v of one dtype among float16, bfloat16, float32 and float64, got "
            f"{dtype}, {k.dtype} and {v.dtype}; convert them to one"
        )
    device = q.device
    if k.device != device or v.device != device:
        raise KernelInputError(
            f"{_OP} requires q, k and v on one device, got {device}, {k.device} and {v.device}; "
            "move them together"
        )


def _check_bias(q: Tensor, bias: Tensor, full: tuple[int, int, int, int]) -> None:
    dtype = bias.dtype
    if dtype != torch.bool and dtype not in DTYPES:
        raise KernelInputError(
            f"{_OP} requires a bool (True = attend) or floating bias, got {dtype}; convert it to one of them"
        )
    if bias.device != q.device:
        raise KernelInputError(
            f"{_OP} requires the bias on q's device {q.device}, got {bias.device}; move it there"
        )
    shape = bias.shape
    if len(shape) > 4 or any(
        size != 1 and size != wanted for size, wanted in zip(reversed(shape), reversed(full), strict=False)
    ):
        raise KernelInputError(
            f"{_OP} requires a bias that broadcasts to [B, H, Nq, Nk] = {list(full)}, got {_shape(bias)}; "
            "insert dimensions of size 1 or slice it to the attended keys"
        )


def refuse_gradients(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> None:
    """Raise GradientNotSupportedError if an input requires grad; for calls under grad mode."""
    if q.requires_grad or k.requires_grad or v.requires_grad or (bias is not None and bias.requires_grad):
        raise GradientNotSupportedError(
            f"{_OP} requires inputs without gradients, got one with requires_grad=True under grad mode; "
            "run it under torch.no_grad() or detach the inputs"
        )


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
