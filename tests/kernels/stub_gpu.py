"""An H100 that launches nothing: Triton's own driver on `stub_libcuda.c`, fed with CPU tensors.

For a process of its own, in which `libcuda.so.1` is that stub and Triton's interpreter is off.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

CASES = {
    # B, H, Hkv, Nq, Nk, D, dtype, shape of a bias; and what is compiled for it
    "Hopper": (2, 16, 4, 256, 521, 128, torch.bfloat16, None),
    "Hopper, parts, bias": (2, 4, 4, 64, 2130, 64, torch.float16, (64, 2130)),
    "portable, parts, bias": (2, 16, 16, 1, 4096, 128, torch.bfloat16, (4096,)),
    "portable": (1, 2, 1, 17, 30, 80, torch.float32, None),
}
# Of the kernels' parameters: the tensors, and those of them that may be descriptors, of nine parameters each.
_OF_TENSORS, _OF_DESCRIPTORS = 8, 3


class Launch(NamedTuple):
    kernel: str
    place: tuple[int, ...]
    """Grid, block, shared memory and stream."""
    parameters: tuple[bytes, ...]


class Watch:
    """Of every program that was compiled: what was launched."""

    def __init__(self) -> None:
        self.stub = ctypes.CDLL("libcuda.so.1")
        self.kernels: list[tuple[str, tuple[int, ...]]] = []

    def add(self, compiled: Any) -> None:
        from toprovar_compiler.kernels.direct_launch import parameter_sizes

        sizes = parameter_sizes(compiled.asm["ptx"])
        array = (ctypes.c_uint32 * len(sizes))(*sizes)
        index = self.stub.stub_watch(ctypes.c_uint64(compiled.function), array, len(sizes))
        assert index == len(self.kernels)
        self.kernels.append((compiled.name, tuple(sizes)))

    def take(self) -> list[Launch]:
        buffer = ctypes.create_string_buffer(1 << 20)
        size = self.stub.stub_take(buffer)
        data = buffer.raw[:size]
        found, at = [], 0
        while at < len(data):
            index, *place = struct.unpack_from("6Q", data, at)
            at += 48
            name, sizes = self.kernels[index]
            ends = [at + sum(sizes[: i + 1]) for i in range(len(sizes))]
            found.append(Launch(name, tuple(place), tuple(data[e - s : e] for e, s in zip(ends, sizes, strict=True))))
            at = ends[-1]
        return found


def pretend() -> list[int]:
    """The current device is an H100; its current stream is what the list holds."""
    stream = [0]
    torch.cuda.current_device = lambda: -1  # the index that CPU tensors have
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch._C._cuda_getCurrentRawStream = lambda index: stream[0]
    from triton.backends.nvidia.driver import CudaDriver

    triton.runtime.driver.set_active(CudaDriver())
    from toprovar_compiler.kernels import hopper_attention

    hopper_attention.hopper_unavailable = lambda device: None
    hopper_attention._processors = lambda index: 132
    hopper_attention.trial = lambda *_: None
    return stream


def operands(case: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    batch, heads, kv_heads, queries, keys, size, dtype, of_bias = case
    lengths = ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    q, k, v = (torch.zeros(batch, n, h, size, dtype=dtype).transpose(1, 2) for n, h in lengths)
    return q, k, v, None if of_bias is None else torch.zeros(of_bias)


def compare(name: str) -> None:
    """A repeated launch has the parameters of Triton's own, byte for byte, but for the addresses of its outputs."""
    stream = pretend()
    from toprovar_compiler.kernels import direct_launch, repeats
    from toprovar_compiler.kernels.triton_attention import attention_entropy_triton

    watch = Watch()
    built = direct_launch._direct
    direct_launch._direct = lambda compiled: (built(compiled), watch.add(compiled))[0]
    with torch.no_grad():
        some, others = operands(CASES[name]), operands(CASES[name])
        attention_entropy_triton(*some)
        for inputs, scale in ((some, None), (others, None), (others, 0.3), (some, 0.0)):
            stream[0] = random.randrange(1 << 40)
            repeats._kind.cache_clear()
            attention_entropy_triton(*inputs, scale)
            first = watch.take()
            assert repeats.kind_of(*inputs, None, None).again is not None
            # Its descriptors come from what the call before it left behind.
            out, entropy = attention_entropy_triton(*inputs, scale)
            _check(first, watch.take(), {out.data_ptr(), entropy.data_ptr()}, inputs[3] is not None)
        assert first[0].kernel == ("attention_entropy_hopper" if "Hopper" in name else "attention_entropy")
        assert len(first) == 1 + ("parts" in name)


def _check(first: list[Launch], again: list[Launch], results: set[int], biased: bool) -> None:
    for own, direct in zip(first, again, strict=True):
        assert own[:2] == direct[:2]
        free = range(4)
        if own.kernel != "join_splits":
            before = 9 * _OF_DESCRIPTORS if "hopper" in own.kernel else _OF_DESCRIPTORS
            free = range(before + biased, before + _OF_TENSORS - _OF_DESCRIPTORS)
        for i, (a, b) in enumerate(zip(own.parameters, direct.parameters, strict=True)):
            assert i in free or a == b, (own.kernel, i)
        given = {struct.unpack("Q", direct.parameters[i])[0] for i in free}
        assert results <= given
        if direct is again[0]:
            parts = given - results
        assert given - results <= parts  # the join reads what the first launch wrote


if __name__ == "__main__":
    compare(sys.argv[1])
