"""Where a dimension goes in an op, for every op that acts on each token alone.

``track(node, operand, axis)`` answers: the op treats every index of ``operand``'s dimension ``axis``
alike and apart from the others; at which position of the result does that dimension stand? An op that is
not listed, or that reduces, merges, splits or mixes the dimension, is refused with a reason. The rules
serve the token dimension and the batch dimension alike.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.attention import SDPA
from toprovar_compiler.passes.graph_tools import aten, expr_of, value_of

Rule = Callable[[fx.Node, fx.Node, int], int]

_MAX_INDEX = torch.iinfo(torch.int64).max


def refuse(node: fx.Node, why: str) -> UnsupportedGraphError:
    return UnsupportedGraphError(f"{node.target} {why}")


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """An argument of an aten node by its schema name, wherever the caller put it."""
    if name in node.kwargs:
        return node.kwargs[name]
    for position, declared in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if declared.name == name:
            return node.args[position] if position < len(node.args) else default
    return default


def first_value(node: fx.Node) -> torch.Tensor:
    """The tensor that a node makes, or the first of the tensors if it makes several."""
    value = value_of(node)
    tensor: torch.Tensor = value[0] if isinstance(value, (tuple, list)) else value
    return tensor


def is_pointwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or node.target in _ELEMENTWISE


def track(node: fx.Node, operand: fx.Node, axis: int) -> int:
    """Position in ``node``'s result of dimension ``axis`` of ``operand``.

    Raises:
        UnsupportedGraphError: the op is unknown, random, or does not keep the dimension apart.
    """
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise refuse(node, "draws random numbers for each token")
    if is_pointwise(node):
        return _broadcast(node, operand, axis)
    rule = _RULES.get(node.target)
    if rule is None:
        raise refuse(node, "is not known to act on each token alone")
    return rule(node, operand, axis)


def _broadcast(node: fx.Node, operand: fx.Node, axis: int) -> int:
    rank: int = value_of(operand).dim()
    return axis + first_value(node).dim() - rank


def _same(node: fx.Node, operand: fx.Node, axis: int) -> int:
    return axis


def _dims(value: Any, rank: int) -> list[int]:
    listed = value if isinstance(value, (tuple, list)) else [value]
    return [int(d) % rank for d in listed]


def _along(name: str, default: object = None) -> Rule:
    """The op works along the dimension(s) of argument ``name`` and keeps the rank."""

    def rule(node: fx.Node, operand: fx.Node, axis: int) -> int:
        dims = argument(node, name, default)
        if dims is None or axis in _dims(dims, value_of(operand).dim()):
            raise refuse(node, "works along this dimension")
        return axis

    return rule


def _reduction(node: fx.Node, operand: fx.Node, axis: int) -> int:
    dims = argument(node, "dim")
    rank = value_of(operand).dim()
    if dims is None or dims == [] or axis in _dims(dims, rank):
        raise refuse(node, "reduces over this dimension")
    if argument(node, "keepdim", False):
        return axis
    return axis - sum(d < axis for d in _dims(dims, rank))


def _pairs(node: fx.Node, operand: fx.Node, axis: int) -> int:
    if node.target is aten.view_as_complex.default and axis == value_of(operand).dim() - 1:
        raise refuse(node, "joins pairs along this dimension")
    return axis


def _normalized(node: fx.Node, operand: fx.Node, axis: int) -> int:
    if operand is not node.args[0] or axis >= value_of(operand).dim() - len(
        argument(node, "normalized_shape")
    ):
        raise refuse(node, "normalises over this dimension")
    return axis


def _linear(node: fx.Node, operand: fx.Node, axis: int) -> int:
    if operand is not node.args[0] or axis == value_of(operand).dim() - 1:
        raise refuse(node, "contracts this dimension")
    return axis


def _matmul(node: fx.Node, operand: fx.Node, axis: int) -> int:
    rank = value_of(operand).dim()
    contracted = rank - 1 if operand is node.args[0] else rank - 2
    if rank < 2 or axis == contracted or node.args[0] is node.args[1]:
        raise refuse(node, "contracts this dimension")
    return _broadcast(node, operand, axis)


def _reshape(node: fx.Node, operand: fx.Node, axis: int) -> int:
    old, new = value_of(operand).shape, first_value(node).shape
    size, before = expr_of(old[axis]), _product(old[:axis])
    for position, candidate in enumerate(new):
        if expr_of(candidate) == size and sympy.expand(_product(new[:position]) - before) == 0:
            return position
    raise refuse(node, "merges or splits this dimension")


def _product(sizes: Sequence[object]) -> sympy.Expr:
    return sympy.prod([expr_of(size) for size in sizes]) if sizes else sympy.Integer(1)


def _permute(node: fx.Node, operand: fx.Node, axis: int) -> int:
    return _dims(argument(node, "dims"), value_of(operand).dim()).index(axis)


def _transpose(node: fx.Node, operand: fx.Node, axis: int) -> int:
    a, b = _dims([argument(node, "dim0"), argument(node, "dim1")], value_of(operand).dim())
    return {a: b, b: a}.get(axis, axis)


def _unsqueeze(node: fx.Node, operand: fx.Node, axis: int) -> int:
    (at,) = _dims(argument(node, "dim"), value_of(operand).dim() + 1)
    return axis + (axis >= at)


def _stack(node: fx.Node, operand: fx.Node, axis: int) -> int:
    (at,) = _dims(argument(node, "dim", 0), value_of(operand).dim() + 1)
    return axis + (axis >= at)


def _drop(default: object) -> Rule:
    """The op removes the dimension(s) of its argument ``dim`` (select, unbind, squeeze)."""

    def rule(node: fx.Node, operand: fx.Node, axis: int) -> int:
        dims = argument(node, "dim", default)
        if dims is None:
            raise refuse(node, "may remove this dimension")
        listed = _dims(dims, value_of(operand).dim())
        if axis in listed:
            raise refuse(node, "takes this dimension apart")
        return axis - sum(d < axis for d in listed)

    return rule


def _slice(node: fx.Node, operand: fx.Node, axis: int) -> int:
    (at,) = _dims(argument(node, "dim", 0), value_of(operand).dim())
    whole = argument(node, "start") in (None, 0) and argument(node, "end") in (None, _MAX_INDEX)
    if axis == at and not (whole and argument(node, "step", 1) == 1):
        raise refuse(node, "takes a part of this dimension")
    return axis


def _attention(node: fx.Node, operand: fx.Node, axis: int) -> int:
    if axis == value_of(operand).dim() - 1:
        raise refuse(node, "contracts this dimension")
    return axis


def _getitem(node: fx.Node, operand: fx.Node, axis: int) -> int:
    return axis


_ELEMENTWISE = {
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.type_as.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.gelu.default,
    aten.silu.default,
    aten.where.self,
    aten.lift_fresh_copy.default,
}

_RULES: dict[object, Rule] = {
    operator.getitem: _getitem,
    SDPA: _attention,
    aten.linear.default: _linear,
    **dict.fromkeys((aten.matmul.default, aten.bmm.default), _matmul),
    # A pair of numbers, the last dimension, becomes one complex number and back.
    **dict.fromkeys((aten.view_as_complex.default, aten.view_as_real.default), _pairs),
    **dict.fromkeys((aten.layer_norm.default, aten.rms_norm.default), _normalized),
    **dict.fromkeys(
        (
            aten.softmax.int,
            aten._softmax.default,
            aten.log_softmax.int,
            aten.cumsum.default,
            aten.glu.default,
        ),
        _along("dim", -1),
    ),
    **dict.fromkeys(
        (
            aten.mean.dim,
            aten.sum.dim_IntList,
            aten.amax.default,
            aten.amin.default,
            aten.var.correction,
            aten.std.correction,
            aten.var.dim,
            aten.std.dim,
            aten.linalg_vector_norm.default,
            aten.norm.ScalarOpt_dim,
            aten.logsumexp.default,
        ),
        _reduction,
    ),
    **dict.fromkeys(
        (
            aten.view.default,
            aten._unsafe_view.default,
            aten.reshape.default,
            aten.flatten.using_ints,
            aten.unflatten.int,
        ),
        _reshape,
    ),
    aten.expand.default: _broadcast,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.unsqueeze.default: _unsqueeze,
    aten.stack.default: _stack,
    **dict.fromkeys((aten.select.int, aten.unbind.int), _drop(0)),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims), _drop(None)),
    **dict.fromkeys(
        (
            aten.split.Tensor,
            aten.split_with_sizes.default,
            aten.chunk.default,
            aten.cat.default,
            aten.index_select.default,
            aten.repeat_interleave.self_int,
        ),
        _along("dim", 0),
    ),
    aten.slice.Tensor: _slice,
}

RESHAPING = frozenset(target for target, rule in _RULES.items() if rule in (_reshape, _broadcast))
"""Ops whose size arguments may mention the token count."""
