"""Launches the Hopper kernel where it serves and is faster; says why where it never does.

It serves bfloat16 and float16, head sizes 64 and 128, no bias, and operands that the copy engine (TMA) can
describe, as the models' own `[B, L, H, D]` layouts are. Everything else is the portable kernel's.
"""

from __future__ import annotations

import math
import warnings
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

_HOPPER = (9, 0)
_DTYPES = (torch.bfloat16, torch.float16)
_ROWS = 64  # queries a warpgroup
LEAST_QUERIES = 128
# Up to so many blocks of 128 queries, and from so many keys on, the portable kernel's split keys are faster.
_FEW_BLOCKS = 64
_KEYS_TO_SPLIT = 2048
_TMA_ALIGNMENT = 16  # bytes
_LARGEST_STRIDE = 1 << 40  # bytes
_MOST_DESCRIPTORS = 4096
_LOG2_E = math.log2(math.e)


class Plan(NamedTuple):
    """Keys a tile, slots of the ring, consumer warpgroups (1 or 2), registers a thread of the second one (the
    first gets what remains), and registers a thread at the launch."""

    keys: int
    stages: int
    warpgroups: int
    registers: int
    launch_registers: int


# head size -> plans, the widest first; the first whose programs fill the GPU is taken, else the last. None
# spills registers; three consumers of 160 registers a thread, for head size 64, did.
PLANS: dict[int, tuple[Plan, ...]] = {
    64: (Plan(128, 3, 2, 240, 168), Plan(128, 2, 1, 0, 128)),
    128: (Plan(128, 2, 2, 240, 168), Plan(64, 2, 1, 0, 128)),
}


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
    tried = (trial(index, plan, size, dtype) for plan in PLANS[size])
    return _unsuited(index) or next(filter(None, tried), None)


def attend_on_hopper(q: Tensor, k: Tensor, v: Tensor, out: Tensor, entropy: Tensor, scale: float) -> bool:
    """Fill out and entropy and return True, or return False where the portable kernel is to do it.

    q `[B, H, Nq, D]`, k and v `[B, Hkv, Nk, D]`, out the transpose of a contiguous `[B, Nq, H, D]`, entropy
    `[B, H, Nq]` float32; none is empty, the scale is not negative, and q's device is the current one.
    """
    plan = choose_plan(q, k, v)
    if plan is None or trial(q.device.index, plan, q.shape[3], q.dtype) is not None:
        return False
    _launch(plan, q, k, v, out, entropy, scale)
    return True


@cache
def trial(index: int, plan: Plan, size: int, dtype: torch.dtype) -> str | None:
    """Why this plan does not compile or launch on GPU `index`; None where it does. The first call tries it.

    What it compiles is what every later call with the plan runs: no argument but these is specialised.
    """
    rows = max(plan.keys, _ROWS)
    x = torch.zeros(1, 1, rows, size, dtype=dtype, device=torch.device("cuda", index))
    try:
        with torch.cuda.device(index):
            _launch(plan, x, x, x, torch.empty_like(x), x.new_empty((1, 1, rows), dtype=torch.float32), 0.0)
    # A Triton that this was not written with fails in ways of many kinds, and the portable kernel is there.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it did not compile or launch ({lines[0]})"
        warnings.warn(f"toprovar: the Hopper kernel is not used: {reason}; the portable one runs", stacklevel=3)
        return reason
    return None


def choose_plan(q: Tensor, k: Tensor, v: Tensor) -> Plan | None:
    """How the Hopper kernel is to run on these operands; None where the portable kernel is to."""
    batch, heads, queries, size = q.shape
    keys = k.shape[2]
    plans = PLANS.get(size)
    if plans is None or v.shape[3] != size or q.dtype not in _DTYPES or queries < LEAST_QUERIES:
        return None
    if keys >= _KEYS_TO_SPLIT and math.ceil(queries / 128) * batch * heads <= _FEW_BLOCKS:
        return None
    if hopper_unavailable(q.device) is not None or not all(map(describable, (q, k, v))):
        return None
    processors = _processors(q.device.index)
    filling = (p for p in plans if math.ceil(queries / (_ROWS * p.warpgroups)) * batch * heads >= processors)
    plan = next(filling, plans[-1])
    return plan if keys >= plan.keys else None


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


def _launch(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor, out: Tensor, entropy: Tensor, scale: float
) -> None:
    batch, heads, queries, size = q.shape
    keys = k.shape[2]
    blocks = math.ceil(queries / (_ROWS * plan.warpgroups))
    _kernels().attention_entropy_hopper[(blocks * batch * heads,)](
        descriptor(q, _ROWS), descriptor(k, plan.keys), descriptor(v, plan.keys), out, entropy,
        heads, heads // k.shape[1], queries, keys, blocks, scale * _LOG2_E, math.log(keys),
        size, plan.keys, plan.stages, plan.warpgroups, plan.registers, q.dtype == torch.float16,
        num_warps=4, maxnreg=plan.launch_registers,
    )  # fmt: skip


def descriptor(x: Tensor, rows: int) -> Any:
    """The TMA descriptor of tiles `[1, 1, rows, D]` of `x` `[B, H, N, D]`, from the cache where it is known.

    Making one costs more than launching a kernel, and a model's tensors return to the same addresses.
    """
    return _descriptor(_Memory(x.data_ptr(), x.dtype), x.shape, x.stride(), rows)


@lru_cache(_MOST_DESCRIPTORS)
def _descriptor(memory: _Memory, shape: torch.Size, stride: tuple[int, ...], rows: int) -> Any:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    # A dimension of length 1 may have any stride; the descriptor wants an aligned one.
    strides = [shape[3] if n == 1 else step for n, step in zip(shape[:3], stride[:3], strict=True)]
    block = [1, 1, rows, shape[3]]
    return TensorDescriptor(memory, list(shape), [*strides, 1], block, _tile_layout(rows, shape[3]))


@cache
def _tile_layout(rows: int, size: int) -> Any:
    from triton.experimental.gluon import language as gl

    # bfloat16 and float16 lie alike.
    return gl.NVMMASharedLayout.get_default_for([1, 1, rows, size], gl.bfloat16)
