"""Attention with entropy on CPU, in C++ that is compiled on first use (``cpu_attention.cpp``).

Inductor's own machinery compiles it, with the compiler and the flags that the blocks are compiled with, and
keeps it on disk. Where there is no compiler, :mod:`toprovar_compiler.kernels.cpu_attention` serves.
"""

from __future__ import annotations

import ctypes
import math
import re
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toprovar_compiler.errors import KernelUnavailableError

SOURCE = Path(__file__).with_name("cpu_attention.cpp")
_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
# Inductor's flags switch fused multiply-adds off, which the products are made of.
_FLAGS = ("-ffp-contract=fast",)
_NO_BIAS, _BOOL_BIAS, _FLOAT_BIAS = range(3)
_RANK = 4
_LOCK = threading.Lock()


class _Call(ctypes.Structure):
    """Sizes and strides, as ``struct Call`` has them."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys")),
        *((name, ctypes.c_int64) for name in ("size", "value_size", "threads")),
        *((name, ctypes.c_int64 * _RANK) for name in ("q", "k", "v", "bias")),
        *((name, ctypes.c_int64) for name in ("bias_kind", "bfloat16", "tiles")),
        ("scale", ctypes.c_double),
    ]


class _Operands(ctypes.Structure):
    """Addresses, as ``struct Operands`` has them."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("q", "k", "v", "bias", "out", "entropy", "scratch")]


class Native(NamedTuple):
    """The compiled library, or why there is none; floats a vector, and whether it uses a tile unit (AMX)."""

    library: Any | None
    width: int
    tiles: bool
    why_not: str | None


def source() -> str:
    """The kernel as one text, its own headers in place of their ``#include`` lines."""
    text = SOURCE.read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda line: SOURCE.with_name(line[1]).read_text(encoding="utf-8"), text)


@cache
def _compile() -> Native:
    try:
        from torch._inductor.codecache import CppCodeCache

        library = CppCodeCache.load_async(source(), extra_flags=_FLAGS)()
        for name in ("width", "tiles", "scratch"):
            getattr(library, f"toprovar_attention_{name}").restype = ctypes.c_int64
        library.toprovar_attention_scratch.argtypes = [ctypes.POINTER(_Call)]
        library.toprovar_attention_entropy.argtypes = [ctypes.POINTER(_Call), ctypes.POINTER(_Operands)]
        library.toprovar_attention_entropy.restype = None
    # Inductor raises errors of many kinds where there is no working compiler; all mean the same here.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Native(None, 0, False, f"the C++ kernel did not compile ({lines[0]})")
    # Linux lends the tile unit to a process that asks.
    tiles = bool(library.toprovar_attention_tiles()) and torch.cpu._init_amx()
    return Native(library, library.toprovar_attention_width(), tiles, None)


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
    bias bool or floating, broadcastable to `[B, H, Nq, Nk]`, never expanded in memory. Sums are float32, and
    so is what is computed from float16; bfloat16 is multiplied as it is where the CPU has a tile unit, its
    weights then rounded to it as well. Returns out `[B, H, Nq, Dv]`, the transpose of a contiguous
    `[B, Nq, H, Dv]`, in q's dtype and entropy `[B, H, Nq]` float32. Callers check the arguments and that
    there is a kernel (:func:`native`).
    """
    if q.dtype == torch.float16:
        out, entropy = attention_entropy_native(q.float(), k.float(), v.float(), bias, scale)
        return out.to(torch.float16), entropy
    batch, heads, queries, size = q.shape
    keys, value_size = k.shape[2], v.shape[3]
    out = q.new_empty((batch, queries, heads, value_size)).transpose(1, 2)
    entropy = q.new_empty((batch, heads, queries), dtype=torch.float32)
    if entropy.numel() == 0 or keys == 0:
        return out.zero_(), entropy.zero_()
    factor = 1.0 / math.sqrt(size) if scale is None else scale
    if factor <= 0:  # the kernel needs a positive one, for the largest logit to have the largest product
        q, factor = (q.neg(), -factor) if factor < 0 else (q * 0, 1.0)
    mask, mask_strides, kind = _bias(bias, q, keys)
    found = native()
    assert found.library is not None, "callers check that there is a kernel"
    call = _Call(
        batch, heads, k.shape[1], queries, keys, size, value_size, torch.get_num_threads(),
        q.stride(), k.stride(), v.stride(), mask_strides,
        kind, q.dtype == torch.bfloat16, found.tiles, factor,
    )  # fmt: skip
    scratch = q.new_empty(found.library.toprovar_attention_scratch(call), dtype=torch.float32)
    tensors = (q, k, v, mask, out, entropy, scratch)
    operands = _Operands(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
    found.library.toprovar_attention_entropy(call, operands)
    return out, entropy


def _bias(bias: Tensor | None, q: Tensor, keys: int) -> tuple[Tensor | None, tuple[int, ...], int]:
    """The bias, its strides over `[B, H, Nq, Nk]` (0 where it broadcasts), and its kind."""
    if bias is None:
        return None, (0,) * _RANK, _NO_BIAS
    wide = bias if bias.dtype == torch.bool else bias.to(torch.float32)
    full = wide.expand(*q.shape[:3], keys)
    return full, full.stride(), _BOOL_BIAS if bias.dtype == torch.bool else _FLOAT_BIAS
