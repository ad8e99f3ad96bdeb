"""Token typing of packed tokens: those of all samples in one dimension, as variable-length attention takes them.

``flash_attn``'s operator for sequences of different lengths gets queries [B * N, H, D] and where each sample's
begin. In a block all samples have N tokens, ``cu_seqlens_q = arange(0, N * (B + 1), N)``, and the keys are the
words of the prompts: attention with the stream on its query side, like any cross-attention.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from toprovar_compiler.passes.axes import Axes
from toprovar_compiler.passes.graph_tools import aten, expr_of, value_of
from toprovar_compiler.passes.token_rules import RESHAPING, argument, refuse

_VARLEN = "flash_attn::_flash_attn_varlen_forward"
# What the rules below hold for; each of these arguments would tie a query to its place among the others.
_PLAIN = {
    "dropout_p": 0.0,
    "causal": False,
    "window_size_left": -1,
    "window_size_right": -1,
    "alibi_slopes": None,
    "return_softmax": False,
    "block_table": None,
    "leftpad_k": None,
}


def is_varlen(node: fx.Node) -> bool:
    """Whether the node is attention over packed sequences; the package that brings it need not be there."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.name() == _VARLEN


def query_lengths(node: fx.Node) -> fx.Node:
    """The operand of packed attention that says where each sample's queries begin."""
    found: fx.Node = argument(node, "cu_seqlens_q")
    return found


def type_varlen(node: fx.Node, axes: dict[fx.Node, Axes], symbol: sympy.Symbol) -> Axes:
    """Packed attention: queries are the stream's, the same number for each sample; keys are not.

    Raises:
        UnsupportedGraphError: anything else, with the reason.
    """
    query = argument(node, "q")
    if [m for m in node.all_input_nodes if m in axes] != [query] or axes[query] != Axes(0, 0, "packed"):
        raise refuse(node, "requires packed queries of the stream, and keys from outside it")
    if any(argument(node, name, plain) != plain for name, plain in _PLAIN.items()):
        raise refuse(node, "is causal, windowed, paged or drops attention at random")
    samples = sympy.cancel(expr_of(value_of(query).shape[0]) / symbol)
    lengths = query_lengths(node)
    start, end, step = (_number(item) for item in (*lengths.args, None, None, None)[:3])
    even = lengths.target is aten.arange.start_step and (start, step) == (0, symbol)
    if not even or end is None or sympy.expand(end - symbol * (samples + 1)) != 0:
        raise refuse(node, "requires as many queries for one sample as for the others")
    if _number(argument(node, "max_seqlen_q")) != symbol:
        raise refuse(node, "requires the token count as its longest sequence of queries")
    return axes[query]


def _number(item: Any) -> sympy.Expr | None:
    value = value_of(item)
    return expr_of(value) if isinstance(value, (int, torch.SymInt)) else None


def repack(node: fx.Node, operand: fx.Node, own: Axes, symbol: sympy.Symbol) -> Axes | None:
    """Where the tokens stand after a reshape that packs them, or takes packed ones apart; None for others."""
    if node.target not in RESHAPING or own.kind == "context":
        return None
    old = [expr_of(size) for size in value_of(operand).shape]
    new = [expr_of(size) for size in value_of(node).shape]
    if own.kind == "packed":
        (at,) = {own.batch, own.token}
        apart = new[at : at + 2]
        fits = new[:at] == old[:at] and len(apart) == 2 and apart[1] == symbol
        return Axes(at, at + 1, "token") if fits and _equal(apart[0] * apart[1], old[at]) else None
    at = own.batch
    fits = own.token == at + 1 and new[:at] == old[:at] and len(new) > at
    return Axes(at, at, "packed") if fits and _equal(new[at], old[at] * old[at + 1]) else None


def is_packed_size(size: sympy.Expr, symbol: sympy.Symbol) -> bool:
    """Whether ``size`` is the token count times a number of samples."""
    return symbol not in sympy.cancel(size / symbol).free_symbols


def _equal(one: sympy.Expr, other: sympy.Expr) -> bool:
    return bool(sympy.expand(one - other) == 0)
