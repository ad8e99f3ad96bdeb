"""Calls of the attention operator on a GPU that are made again, without looking at their arguments anew.

Checks, the choice of a kernel, of its plan and of the parts of the keys, the compiled program, its grid and all of
its arguments but for addresses and the scale depend on nothing but the *kind* of a call: shapes, strides, dtypes,
devices and alignments of the inputs. :func:`kind_of` finds the kind by all of these, in one look-up. The first call
of a kind goes the whole way (:mod:`.triton_attention`), through Triton's own launch, and leaves with the kind what
it launched: :func:`repeat`. Every later call fetches its addresses, makes the outputs and launches the same programs
on the current stream. TMA descriptors are found by their operand, which belongs to the kind, and the address.

Nothing is taken for granted that can change from call to call: gradients, the scale's sign, the alignment of the
outputs and Triton's hooks are looked at each time, and a call that is not like the first goes the whole way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from toprovar_compiler.kernels.checks import refuse_gradients
from toprovar_compiler.kernels.direct_launch import LOG2_E, Attended, Operand, direct, encoded, watched
from toprovar_compiler.kernels.split_keys import make_parts

_MOST_KINDS = 2048
ALIGNMENT = 16  # bytes, to which Triton's programs are specialised

Again = Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], tuple[Tensor, Tensor] | None]


class Kind:
    """What is known of calls of one kind: how to make them again, once one has been made."""

    __slots__ = ("again",)

    def __init__(self) -> None:
        self.again: Again | None = None


def kind_of(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *chosen: Any) -> Kind:
    """The kind of a call; `chosen` is what else the caller settled for it."""
    return _kind(
        q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), q.dtype, k.dtype, v.dtype,
        q.get_device(), k.get_device(), v.get_device(),
        q.data_ptr() % ALIGNMENT, k.data_ptr() % ALIGNMENT, v.data_ptr() % ALIGNMENT,
        None if bias is None else _bias_kind(bias), chosen,
    )  # fmt: skip


def _bias_kind(bias: Tensor) -> tuple[Any, ...]:
    return bias.shape, bias.stride(), bias.dtype, bias.get_device(), bias.data_ptr() % ALIGNMENT


@lru_cache(_MOST_KINDS)
def _kind(*_key: Any) -> Kind:
    return Kind()


def repeat(done: Attended, q: Tensor, out: Tensor, entropy: Tensor) -> Again | None:
    """How to make a call again that launched `done`; None where its programs cannot be launched directly.

    What it returns takes q, k, v, bias and scale of the same kind and returns out and entropy like these; or None,
    having launched nothing, where the call must go the whole way.

    Raises:
        GradientNotSupportedError: by what it returns, as :func:`.checks.check_attention` does.
    """
    attend = direct(done.attend.compiled)
    join = direct(done.join.compiled) if done.join is not None else None
    if attend is None or (join is None and done.join is not None):
        return None
    run, current_stream, encodings = attend
    programs, numbers = done.attend.programs, done.attend.numbers
    before, after = numbers[: done.scale_at], numbers[done.scale_at + 1 :]
    operands = tuple(map(Operand, done.descriptors, encodings))
    usual_scale = 1.0 / math.sqrt(q.shape[3]) * LOG2_E
    index, shape, stride = q.get_device(), out.shape, out.stride()
    rows, row_stride, value_size = entropy.shape, entropy.stride(), out.shape[3]

    def again(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor] | None:
        if torch.is_grad_enabled():
            refuse_gradients(q, k, v, bias)
        if (scale is not None and not 0.0 <= scale < math.inf) or watched(knobs.runtime):
            return None
        out = q.new_empty_strided(shape, stride)
        entropy = q.new_empty_strided(rows, row_stride, dtype=torch.float32)
        out_at = out.data_ptr()
        part_at = statistics_at = entropy_at = entropy.data_ptr()
        if join is not None:
            parts = make_parts(done.splits, entropy, value_size)
            part_at, statistics_at = parts.outputs.data_ptr(), parts.statistics.data_ptr()
        if (out_at | entropy_at | part_at | statistics_at) % ALIGNMENT != 0:
            return None
        inputs: tuple[Any, ...] = (q.data_ptr(), k.data_ptr(), v.data_ptr())
        if operands:
            of_q, of_k, of_v = map(encoded, operands, inputs)
            inputs = (*of_q, *of_k, *of_v)
        bias_at = entropy_at if bias is None else bias.data_ptr()
        factor = usual_scale if scale is None else scale * LOG2_E
        stream = current_stream(index)
        tensors = (*inputs, bias_at, out_at, entropy_at, part_at, statistics_at)
        run(programs, stream, (*tensors, *before, factor, *after))
        if join is not None and done.join is not None:
            of_join = (part_at, statistics_at, out_at, entropy_at, *done.join.numbers)
            join.run(done.join.programs, stream, of_join)
        return out, entropy

    return again
