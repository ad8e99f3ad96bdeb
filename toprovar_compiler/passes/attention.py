"""Attention nodes of a graph, and which of them attend over the token stream itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from toprovar_compiler.passes.graph_tools import calls

SDPA = torch.ops.aten.scaled_dot_product_attention.default
_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True)
class Attention:
    """One ``scaled_dot_product_attention`` call: query [B, H, Nq, D], key [B, Hkv, Nk, D]."""

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    dropout: float
    causal: bool
    scale: Any
    grouped: bool


def read_attention(node: fx.Node) -> Attention:
    """The arguments of an SDPA node by name, defaults filled in."""
    given: dict[str, Any] = dict(zip(_SDPA_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
    return Attention(
        node,
        given["query"],
        given["key"],
        given["value"],
        given.get("attn_mask"),
        float(given.get("dropout_p", 0.0)),
        bool(given.get("is_causal", False)),
        given.get("scale"),
        bool(given.get("enable_gqa", False)),
    )


def find_attention(graph: fx.Graph) -> list[Attention]:
    return [read_attention(node) for node in calls(graph, SDPA)]


def is_self_attention(attention: Attention, stream: set[fx.Node]) -> bool:
    """Whether query and key both are made of ``stream``'s values; cross-attention's keys are not."""
    return attention.query in stream and attention.key in stream
