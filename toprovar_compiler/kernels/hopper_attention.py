"""Launches the Hopper kernel where it serves and is faster; says why where it never does.

It serves bfloat16 and float16, head sizes 64 and 128, operands that the copy engine (TMA) can describe, as the
models' own `[B, L, H, D]` layouts are, and a bias with its keys side by side. Everything else is the portable
kernel's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toprovar_compiler.kernels.direct_launch import LOG2_E, Attended, Launched
from toprovar_compiler.kernels.hopper_plans import PLANS, ROWS, Plan, blocks, choose

_HOPPER = (9, 0)
_DTYPES = (torch.bfloat16, torch.float16)
_TMA_ALIGNMENT = 16  # bytes
_LARGEST_STRIDE = 1 << 40  # bytes
_BIAS_DTYPES = (torch.bool, torch.bfloat16, torch.float16, torch.float32)
_LARGEST_BIAS_STRIDE = 1 << 31  # elements
_MOST_DESCRIPTORS = 4096


class Program(NamedTuple):
    """All that the kernel is compiled for; no other argument is specialised."""

    plan: Plan
    size: int
    dtype: torch.dtype
    split: bool = False
    with_entropy: bool = True
    bias: torch.dtype | None = None


class _Memory(NamedTuple):
    """What a descriptor needs of a tensor; the tensor itself would be kept alive by the cache."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


def hopper_unavailable(device: torch.device) -> str | None:
    """Why no call on `device` can take the Hopper kernel; None where those that it serves may.

    It is not compiled for this; that it does is seen by :func:`hopper_shortfall`.
    """
    if device.type != "cuda":
        return f"it needs a GPU, got the device {device}"
    return _unsuited(_index(device))


def hopper_shortfall(device: torch.device, size: int, dtype: torch.dtype) -> str | None:
    """Why attention with heads of `size` runs the portable kernel on a Hopper GPU, though the other serves it.

    None where nothing is amiss: the kernel works, or the GPU, the head size or the dtype are none of its own.
    Compiles what was not yet compiled for this head size and dtype.
    """
    if device.type != "cuda" or size not in PLANS or dtype not in _DTYPES:
        return None
    index = _index(device)
    if not _is_hopper(index):
        return None
    programs = (Program(plan, size, dtype) for plan in PLANS[size])
    tried = (trial(index, program) for program in programs)
    return _unsuited(index) or next(filter(None, tried), None)


def attend_on_hopper(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, entropy: Tensor, scale: float
) -> Attended | None:
    """Fill out and entropy and return what was launched, or None where the portable kernel is to do it.

    q `[B, H, Nq, D]`, k and v `[B, Hkv, Nk, D]`, bias bool or floating, broadcastable to `[B, H, Nq, Nk]`, out
    the transpose of a contiguous `[B, Nq, H, D]`, entropy `[B, H, Nq]` float32; none is empty, the scale is not
    negative, and q's device is the current one.
    """
    chosen = choose_plan(q, k, v, bias)
    if chosen is None:
        return None
    plan, splits = chosen
    program = Program(plan, q.shape[3], q.dtype, splits > 1, bias=None if bias is None else bias.dtype)
    if trial(q.device.index, program) is not None:
        return None
    return launch(plan, splits, q, k, v, bias, out, entropy, scale)


@cache
def trial(index: int, program: Program) -> str | None:
    """Why this program does not compile or launch on GPU `index`; None where it does. The first call tries it."""
    plan, size, dtype, split, with_entropy, bias_dtype = program
    splits = 2 if split else 1
    rows = max(plan.keys, ROWS) * splits
    x = torch.zeros(1, 1, rows, size, dtype=dtype, device=torch.device("cuda", index))
    bias = None if bias_dtype is None else x.new_zeros((rows, rows), dtype=bias_dtype)
    entropy = x.new_empty((1, 1, rows), dtype=torch.float32)
    try:
        with torch.cuda.device(index):
            launch(plan, splits, x, x, x, bias, torch.empty_like(x), entropy, 0.0, with_entropy)
    # A Triton that this was not written with fails in ways of many kinds, and the portable kernel is there.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it did not compile or launch ({lines[0]})"
        warnings.warn(f"toprovar: the Hopper kernel is not used: {reason}; the portable one runs", stacklevel=3)
        return reason
    return None


def choose_plan(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Plan, int] | None:
    """How the Hopper kernel is to run on these operands, and on how many parts of the keys; None where the
    portable kernel is to."""
    batch, heads, queries, size = q.shape
    if v.shape[3] != size or size not in PLANS or q.dtype not in _DTYPES:
        return None
    if hopper_unavailable(q.device) is not None or not all(map(describable, (q, k, v))):
        return None
    if bias is not None and not readable(bias, q, k):
        return None
    processors = _processors(q.device.index)
    return choose(batch * heads, queries, k.shape[2], size, processors, bias is not None)


def readable(bias: Tensor, q: Tensor, k: Tensor) -> bool:
    """Whether the kernel's pointers reach all of `bias`: neighbouring keys, and strides of 31 bits."""
    spread = _spread(bias, q, k)
    of_a_batch, of_a_head, of_a_query = _bias_strides(spread)
    largest = max(of_a_batch, of_a_head, of_a_query * ROWS)
    return spread.stride(3) == 1 and largest < _LARGEST_BIAS_STRIDE and bias.dtype in _BIAS_DTYPES


def _spread(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """`[B, H, Nq, Nk]`, with stride 0 where the bias broadcasts."""
    return bias.expand(*q.shape[:3], k.shape[2])


def _bias_strides(spread: Tensor) -> tuple[int, int, int]:
    """From row to row, head to head and query to query; a dimension of length 1 may say anything."""
    batch, head, query = (s if n > 1 else 0 for n, s in zip(spread.shape[:3], spread.stride()[:3], strict=True))
    return batch, head, query


def describable(x: Tensor) -> bool:
    """Whether a TMA descriptor can say where `x` `[B, H, N, D]` lies."""
    size = x.element_size()
    if x.stride(3) != 1 or x.data_ptr() % _TMA_ALIGNMENT != 0:
        return False
    strides = (
        stride * size for length, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if length > 1
    )
    return all(0 < stride < _LARGEST_STRIDE and stride % _TMA_ALIGNMENT == 0 for stride in strides)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _is_hopper(index: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(index) == _HOPPER


@cache
def _unsuited(index: int) -> str | None:
    if not _is_hopper(index):
        found = ".".join(map(str, torch.cuda.get_device_capability(index)))
        return f"it needs compute capability 9.0, got {found}"
    try:
        _kernels()
    # Not only ImportError: Gluon is experimental, and its names are looked up while the module is read.
    except Exception as error:
        return f"the installed Triton lacks what it needs of Gluon ({type(error).__name__}: {error})"
    return None


@cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@cache
def _kernels() -> ModuleType:
    from toprovar_compiler.kernels import hopper_kernels

    return hopper_kernels


def launch(
    plan: Plan,
    splits: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    entropy: Tensor,
    scale: float,
    with_entropy: bool = True,
) -> Attended:
    """Run a plan on operands as :func:`attend_on_hopper` has them, with `splits * plan.keys` keys or more.

    Without entropy, which serves to measure what it costs, `entropy` is left alone if there is one part.
    """
    from toprovar_compiler.kernels.split_keys import join, make_parts

    batch, heads, queries, size = q.shape
    keys, of_a_head = k.shape[2], blocks(plan, queries)
    parts = make_parts(splits, entropy, size)
    spread = entropy if bias is None else _spread(bias, q, k)
    strides = (0, 0, 0) if bias is None else _bias_strides(spread)
    spread = spread.view(torch.uint8) if spread.dtype == torch.bool else spread
    programs = of_a_head * splits * batch * heads
    descriptors = tuple(descriptor(x, rows) for x, rows in ((q, ROWS), (k, plan.keys), (v, plan.keys)))
    numbers: tuple[Any, ...] = (*strides, heads, heads // k.shape[1], queries, keys, of_a_head, splits, scale * LOG2_E)
    scale_at = len(numbers) - 1
    numbers += (
        math.log(keys), size, plan.keys, plan.stages, plan.warpgroups, plan.registers, q.dtype == torch.float16,
        splits > 1, with_entropy, bias is not None,
    )  # fmt: skip
    compiled = _kernels().attention_entropy_hopper[(programs,)](
        *(describe(x.data_ptr()) for describe, x in zip(descriptors, (q, k, v), strict=True)),
        spread, out, entropy, *parts, *numbers, num_warps=4, maxnreg=plan.launch_registers,
    )  # fmt: skip
    joined = join(parts, splits, out, entropy, keys) if splits > 1 else None
    return Attended(Launched(compiled, programs, numbers), scale_at, splits, joined, descriptors)


def descriptor(x: Tensor, rows: int) -> Callable[[int], Any]:
    """The TMA descriptor of tiles `[1, 1, rows, D]` of tensors like `x` `[B, H, N, D]`, for an address.

    Making one costs more than launching a kernel, and a model's tensors return to the same addresses: known ones
    come from a cache.
    """
    return partial(_descriptor, x.dtype, x.shape, x.stride(), rows)


@lru_cache(_MOST_DESCRIPTORS)
def _descriptor(
    dtype: torch.dtype, shape: torch.Size, stride: tuple[int, ...], rows: int, address: int
) -> Any:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    # A dimension of length 1 may have any stride; the descriptor wants an aligned one.
    strides = [shape[3] if n == 1 else step for n, step in zip(shape[:3], stride[:3], strict=True)]
    block = [1, 1, rows, shape[3]]
    return TensorDescriptor(_Memory(address, dtype), list(shape), [*strides, 1], block, _tile_layout(rows, shape[3]))


@cache
def _tile_layout(rows: int, size: int) -> Any:
    from triton.experimental.gluon import language as gl

    # bfloat16 and float16 lie alike.
    return gl.NVMMASharedLayout.get_default_for([1, 1, rows, size], gl.bfloat16)
