"""Tells Inductor which inputs of a graph are weights.

Dynamo marks them, and Inductor relies on it twice: a CUDA graph reads a weight where it lies, but copies
every other input that does not lie where it lay, at each call; and the alignment of a weight is not looked at
anew at each call. Exporting a graph loses the marks.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import fx
from torch._dynamo.source import ConstantSource

from toprovar_compiler.passes.graph_tools import placeholders

# How Dynamo says what it knows of an input, and how Inductor's front end tells Dynamo's graphs from others.
_OF_INPUT = "tensor_dict"
_MARK = "_dynamo_static_input_type"
_OF_GRAPH = "dynamo_compile_id"
_OF_SOURCES = "_param_name_to_source"


def keep_marks(dynamo: fx.GraphModule, exported: fx.GraphModule) -> None:
    """Note on the exported graph what Dynamo's says of the same inputs; :func:`clone` hands it on."""
    if _OF_GRAPH not in dynamo.meta:
        return
    exported.meta[_OF_GRAPH] = dynamo.meta[_OF_GRAPH]
    for before, after in zip(placeholders(dynamo.graph), placeholders(exported.graph), strict=True):
        after.meta[_OF_INPUT] = before.meta.get(_OF_INPUT, {})


def marks(graph: fx.Graph) -> tuple[Any, ...]:
    """What is noted on the inputs of a graph, None for each without a mark."""
    return tuple(node.meta.get(_OF_INPUT, {}).get(_MARK) for node in placeholders(graph))


def show_marks(gm: fx.GraphModule) -> None:
    """Give an exported graph that is about to be compiled the form in which Inductor finds the marks.

    Its inputs name no source: no guard is to come of them that Dynamo's own graph did not ask for. That
    graph, compiled where it cannot be exported, has the form already and needs the guards of its sources.
    Tensors that the graph holds itself, such as constants of the model's code, must each name one of its own.
    """
    if _OF_GRAPH not in gm.meta or hasattr(gm, _OF_SOURCES):
        return
    held = chain(gm.named_parameters(remove_duplicate=False), gm.named_buffers(remove_duplicate=False))
    setattr(gm, _OF_SOURCES, {name: ConstantSource(name) for name, _ in held})
    for node in placeholders(gm.graph):
        source: Any = node
        source._dynamo_source = None
