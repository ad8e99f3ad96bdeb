"""Attention with entropy on CPU, in C++ that is compiled on first use (``cpu_attention.cpp``).

Inductor's own machinery compiles it, with the compiler and the flags that the blocks are compiled with, and
keeps it on disk. Where there is no compiler, :mod:`toprovar_compiler.kernels.cpu_attention` serves.
"""

from __future__ import annotations

import ctypes
import math
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toprovar_compiler.errors import KernelUnavailableError

SOURCE = Path(__file__).with_name("cpu_attention.cpp")
_NO_BIAS, _BOOL_BIAS, _FLOAT_BIAS = range(3)
_RANK = 4
_LOCK = threading.Lock()


class _Call(ctypes.Structure):
    """Sizes and strides, as ``struct Call`` has them."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys")),
        *((name, ctypes.c_int64) for name in ("size", "value_size", "threads")),
        *((name, ctypes.c_int64 * _RANK) for name in ("q", "k", "v", "bias")),
        ("bias_kind", ctypes.c_int64),
    ]


class _Operands(ctypes.Structure):
    """Addresses, as ``struct Operands`` has them."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("q", "k", "v", "bias", "out", "entropy")]


class Native(NamedTuple):
    """The compiled function, or why there is none."""

    function: Any | None
    why_not: str | None


@cache
def _compile() -> Native:
    try:
        from torch._inductor.codecache import CppCodeCache

        library = CppCodeCache.load(SOURCE.read_text(encoding="utf-8"))
        function = library.toprovar_attention_entropy
    # Inductor raises errors of many kinds where there is no working compiler; all mean the same here.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Native(None, f"the C++ kernel did not compile ({lines[0]})")
    function.argtypes = [ctypes.POINTER(_Call), ctypes.POINTER(_Operands), ctypes.c_double]
    function.restype = None
    return Native(function, None)


def native() -> Native:
    """Compiles the kernel on the first call of a process; where it cannot, the first call warns."""
    with _LOCK:
        first = not _compile.cache_info().currsize
        found = _compile()
    if first and found.why_not is not None:
        warnings.warn(f"toprovar: {found.why_not}; a slower form of it runs", stacklevel=2)
    return found


def require_native() -> None:
    """Raises:
    KernelUnavailableError: the kernel cannot be compiled here.
    """
    why_not = native().why_not
    if why_not is not None:
        raise KernelUnavailableError(
            f"the cpu-native implementation requires a C++ compiler with OpenMP, but {why_not}; "
            "install g++, or ask for 'cpu'"
        )


def attention_entropy_native(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and the entropy of its rows (equation 2 of the paper) in one pass over the keys.

    q `[B, H, Nq, D]`, k `[B, Hkv, Nk, D]`, v `[B, Hkv, Nk, Dv]`, float32, float16 or bfloat16, any strides;
    bias bool or floating, broadcastable to `[B, H, Nq, Nk]`, never expanded in memory. 16-bit inputs are
    computed in float32. Returns out `[B, H, Nq, Dv]`, the transpose of a contiguous `[B, Nq, H, Dv]`, in q's dtype and
    entropy `[B, H, Nq]` float32. Callers check the arguments and that there is a kernel (:func:`native`).
    """
    batch, heads, queries, size = q.shape
    out = q.new_empty((batch, queries, heads, v.shape[3]), dtype=torch.float32)
    entropy = q.new_empty((batch, heads, queries), dtype=torch.float32)
    if entropy.numel() == 0 or k.shape[2] == 0:
        return out.zero_().to(q.dtype).transpose(1, 2), entropy.zero_()
    factor = 1.0 / math.sqrt(size) if scale is None else scale
    wide_q, wide_k, wide_v = (x.to(torch.float32) for x in (q, k, v))
    mask, strides, kind = _bias(bias, q, k.shape[2])
    call = _Call(
        batch, heads, k.shape[1], queries, k.shape[2], size, v.shape[3], torch.get_num_threads(),
        *((ctypes.c_int64 * _RANK)(*x) for x in (wide_q.stride(), wide_k.stride(), wide_v.stride(), strides)),
        kind,
    )  # fmt: skip
    mask_at = None if mask is None else mask.data_ptr()
    at = _Operands(
        wide_q.data_ptr(), wide_k.data_ptr(), wide_v.data_ptr(), mask_at, out.data_ptr(), entropy.data_ptr()
    )
    function = native().function
    assert function is not None, "callers check that there is a kernel"
    function(ctypes.byref(call), ctypes.byref(at), factor)
    return out.to(q.dtype).transpose(1, 2), entropy


def _bias(bias: Tensor | None, q: Tensor, keys: int) -> tuple[Tensor | None, tuple[int, ...], int]:
    """The bias, its strides over `[B, H, Nq, Nk]` (0 where it broadcasts), and its kind."""
    if bias is None:
        return None, (0,) * _RANK, _NO_BIAS
    wide = bias if bias.dtype == torch.bool else bias.to(torch.float32)
    full = wide.expand(*q.shape[:3], keys)
    return full, full.stride(), _BOOL_BIAS if bias.dtype == torch.bool else _FLOAT_BIAS
