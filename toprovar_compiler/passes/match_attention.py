"""Finds the attention over the token stream, hand-written or fused, and marks it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.attention import SDPA, find_attention
from toprovar_compiler.passes.base import source_uuid
from toprovar_compiler.passes.graph_tools import aten, calls, value_of
from toprovar_compiler.passes.token_axis import find_source
from toprovar_compiler.passes.token_rules import argument

MARK = "toprovar_attention"

_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_MATMUL = (aten.matmul.default, aten.bmm.default)
_RANK = 4
_LEAST_MASK_RANK = 2
_CASTS = (aten._to_copy.default, aten.to.dtype)


@dataclass(frozen=True)
class AttentionMark:
    """Left in ``node.meta[MARK]``: the dtype that attention computes in (autocast's, if it rules)."""

    dtype: torch.dtype


@dataclass(frozen=True)
class _HandWritten:
    """The parts of ``softmax(q @ k.mT * scale + bias) @ v``."""

    query: fx.Node
    key: fx.Node
    value: fx.Node
    bias: fx.Node | None
    keep: fx.Node | None
    scale: float
    result: fx.Node


class MatchAttention:
    """Rewrites hand-written attention to SDPA, and marks SDPA over the token stream.

    Before::

        s = matmul(q, transpose(k, -2, -1)) * scale + bias
        y = matmul(softmax(s, -1), v)

    After::

        y = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)     # meta: AttentionMark

    Left alone: a softmax over another dimension, a score matrix that something else reads too, dropout in
    training mode, operands that are not 4-D, and attention whose keys are not the stream's.
    """

    name = "match-attention"

    def uuid(self) -> str:
        return source_uuid(self)

    def __call__(self, gm: fx.GraphModule) -> int:
        """Rewrite ``gm``; returns how many attentions over the stream are marked.

        Raises:
            UnsupportedGraphError: the graph has no attention over a residual stream.
        """
        _drop_idle_dropout(gm.graph)
        for softmax in calls(gm.graph, *_SOFTMAX):
            found = _read_hand_written(softmax)
            if found is not None:
                _replace(gm.graph, found)
        gm.graph.eliminate_dead_code()
        if not find_attention(gm.graph) and any(map(_feeds_product, calls(gm.graph, *_SOFTMAX))):
            raise UnsupportedGraphError("attention is hand-written in a form that is not recognised")
        _, own = find_source(gm.graph)
        for attention in own:
            if attention.dropout or attention.causal:
                raise UnsupportedGraphError("attention over the tokens is causal or drops at random")
            attention.node.meta[MARK] = AttentionMark(value_of(attention.node).dtype)
        return len(own)


def _single_use(node: fx.Node) -> bool:
    return len(node.users) == 1


def _drop_idle_dropout(graph: fx.Graph) -> None:
    """Dropout in evaluation mode does nothing, but as a random op it outlives dead-code elimination."""
    for node in calls(graph, aten.dropout.default):
        if not argument(node, "train"):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            graph.erase_node(node)


def _feeds_product(softmax: fx.Node) -> bool:
    return any(user.target in (*_MATMUL, aten.einsum.default) for user in softmax.users)


def _read_hand_written(softmax: fx.Node) -> _HandWritten | None:
    rank = value_of(softmax).dim()
    scores, result = _skip_casts(softmax.args[0]), _product_with_values(softmax)
    if int(argument(softmax, "dim")) % rank != rank - 1 or scores is None or result is None:
        return None
    bias = keep = None
    if scores.target is aten.masked_fill.Scalar and argument(scores, "value") == -math.inf:
        keep, product = argument(scores, "mask"), _scaled_product(argument(scores, "self"))
    elif scores.target is aten.add.Tensor and argument(scores, "alpha", 1) == 1:
        product, bias = _split_bias(scores)
    else:
        product = _scaled_product(scores)
    if product is None:
        return None
    (query, key), value = product[0].args, result.args[1]
    key = _transposed(key)
    if any(not isinstance(n, fx.Node) or value_of(n).dim() != _RANK for n in (query, key, value)):
        return None
    return _HandWritten(query, key, value, bias, keep, product[1], result)  # type: ignore[arg-type]


def _product_with_values(softmax: fx.Node) -> fx.Node | None:
    node = softmax
    while _single_use(node):
        (user,) = node.users
        if user.target not in (*_CASTS, aten.clone.default):
            return user if user.target in _MATMUL and user.args[0] is node else None
        node = user
    return None


def _skip_casts(node: Any) -> fx.Node | None:
    """Follows casts upwards; None where another reader sees the score matrix."""
    while isinstance(node, fx.Node) and _single_use(node):
        if node.target not in _CASTS:
            return node
        node = node.args[0]
    return None


def _scaled_product(node: Any) -> tuple[fx.Node, float] | None:
    """The matrix product above ``node``, and the number that it is multiplied by on the way."""
    scale = 1.0
    inner = _skip_casts(node)
    while inner is not None and inner.target in (aten.mul.Tensor, aten.div.Tensor):
        factor = inner.args[1]
        if not isinstance(factor, (int, float)):
            return None
        scale = scale * factor if inner.target is aten.mul.Tensor else scale / factor
        inner = _skip_casts(inner.args[0])
    return (inner, scale) if inner is not None and inner.target in _MATMUL else None


def _split_bias(added: fx.Node) -> tuple[tuple[fx.Node, float] | None, fx.Node | None]:
    """The scaled product and what is added to it; a number is left out, softmax does not see it."""
    for scores, bias in (added.args, added.args[::-1]):
        product = _scaled_product(scores)
        if product is not None and isinstance(value_of(bias), (torch.Tensor, int, float)):
            return product, bias if isinstance(bias, fx.Node) else None
    return None, None


def _transposed(node: Any) -> fx.Node | None:
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.transpose.int:
        rank = value_of(node).dim()
        dims = {int(argument(node, "dim0")) % rank, int(argument(node, "dim1")) % rank}
        return node.args[0] if dims == {rank - 2, rank - 1} else None  # type: ignore[return-value]
    if node.target is aten.permute.default and list(argument(node, "dims")) == [0, 1, 3, 2]:
        return node.args[0]  # type: ignore[return-value]
    return None


def _replace(graph: fx.Graph, found: _HandWritten) -> None:
    dtype = value_of(found.result).dtype
    with graph.inserting_before(found.result):

        def as_result(node: fx.Node) -> fx.Node:
            if value_of(node).dtype == dtype:
                return node
            cast = graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
            cast.meta["val"] = value_of(node).to(dtype)
            return cast

        mask = found.bias
        if mask is not None:
            mask = as_result(mask)
        elif found.keep is not None:
            mask = graph.call_function(aten.logical_not.default, (found.keep,))
            mask.meta["val"] = value_of(found.keep).logical_not()
        if mask is not None and value_of(mask).dim() < _LEAST_MASK_RANK:
            # One value a key broadcasts over scores; SDPA wants the dimension of the queries, too.
            value = value_of(mask)[None]
            mask = graph.call_function(aten.unsqueeze.default, (mask, 0))
            mask.meta["val"] = value
        operands = (as_result(found.query), as_result(found.key), as_result(found.value))
        fused = graph.call_function(SDPA, operands, {"attn_mask": mask, "scale": found.scale})
    fused.meta = dict(found.result.meta)
    found.result.replace_all_uses_with(fused)
