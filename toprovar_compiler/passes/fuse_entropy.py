"""Gets the attention entropy inside the attention."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from toprovar_compiler.kernels import ops  # noqa: F401  (registers toprovar::flash_attention_entropy)
from toprovar_compiler.passes.attention import find_attention
from toprovar_compiler.passes.base import source_uuid
from toprovar_compiler.passes.graph_tools import aten, outputs
from toprovar_compiler.passes.match_attention import MARK


class FuseEntropy:
    """Marked attention becomes Flash Attention Entropy; its entropies are returned too.

    Before::

        y = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)     # meta: AttentionMark
        return ...

    After::

        y, h = toprovar::flash_attention_entropy(q, k, v, bias, scale)             # h: [B, H, Nq] (eq. 2)
        return ..., h                                                              # float32, nats

    SDPA is on autocast's list and our op is not, so operands are cast to the dtype that SDPA had.
    One entropy output is appended for each marked attention, in graph order.
    """

    name = "fuse-entropy"

    def uuid(self) -> str:
        return source_uuid(self)

    def __call__(self, gm: fx.GraphModule) -> int:
        """Rewrite ``gm``; returns the number of fused attentions. Raises nothing of its own."""
        graph = gm.graph
        maps: list[fx.Node] = []
        for attention in find_attention(graph):
            mark = attention.node.meta.get(MARK)
            if mark is None:
                continue
            with graph.inserting_before(attention.node):
                cast = [
                    self._cast(graph, n, mark.dtype)
                    for n in (attention.query, attention.key, attention.value)
                ]
                arguments: tuple[Any, ...] = (*cast, attention.mask, attention.scale)
                both = graph.call_function(torch.ops.toprovar.flash_attention_entropy.default, arguments)
                out = graph.call_function(operator.getitem, (both, 0))
                maps.append(graph.call_function(operator.getitem, (both, 1)))
            attention.node.replace_all_uses_with(out)
            graph.erase_node(attention.node)
        graph.output_node().args = ((*outputs(graph), *maps),)
        return len(maps)

    @staticmethod
    def _cast(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        # to.dtype returns its input unchanged where the dtype is right already: no copy is made.
        return graph.call_function(aten.to.dtype, (node, dtype))
