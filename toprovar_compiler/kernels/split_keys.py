"""What programs that share a row's keys leave behind, and what makes a row of it again."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from toprovar_compiler.kernels import triton_kernels as kernels
from toprovar_compiler.kernels.direct_launch import Launched

JOIN_ROWS = 16
_SMALLEST_DOT = 16


class Parts(NamedTuple):
    """Of every part of the keys: unnormalised outputs `[splits, B, H, Nq, Dv]` and m, l, e
    `[splits, B, H, Nq, 3]`, float32; stand-ins where there is one part."""

    outputs: Tensor
    statistics: Tensor


def make_parts(splits: int, entropy: Tensor, value_size: int) -> Parts:
    """Space for the parts of rows like those of `entropy` `[B, H, Nq]` float32."""
    if splits == 1:
        return Parts(entropy, entropy)
    shape = (splits, *entropy.shape)
    return Parts(entropy.new_empty((*shape, value_size)), entropy.new_empty((*shape, 3)))


def join(parts: Parts, splits: int, out: Tensor, entropy: Tensor, keys: int) -> Launched:
    """Fill out `[B, H, Nq, Dv]` and entropy `[B, H, Nq]`, in the order of the parts: the same bits each time."""
    batch, heads, queries, value_size = out.shape
    programs = math.ceil(queries / JOIN_ROWS) * batch * heads
    numbers = (*out.stride(), heads, queries, keys, splits, value_size, padded(value_size), JOIN_ROWS)
    compiled = kernels.join_splits[(programs,)](*parts, out, entropy, *numbers)
    return Launched(compiled, programs, numbers)


def padded(size: int) -> int:
    """The head size that tiles have room for: a power of two."""
    return max(_SMALLEST_DOT, 1 << (size - 1).bit_length())
