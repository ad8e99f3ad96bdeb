"""From a Dynamo graph to functional, pre-dispatch ATen: the form that the passes rewrite.

Pre-dispatch ATen keeps ``scaled_dot_product_attention``, ``linear``, ``layer_norm`` and ``softmax`` whole and
is the same on every device. Dynamo's own graph still has in-place ops (rewriting it lost an in-place bias),
and post-AOT graphs have attention taken apart and depend on layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._functorch.aot_autograd import aot_export_module
from torch._guards import TracingContext, tracing

from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.drop_assertions import DropAssertions
from toprovar_compiler.static_inputs import keep_marks


def needs_gradients(gm: fx.GraphModule) -> bool:
    """Whether autograd would record this graph: grad mode is on and an input requires grad."""
    if not torch.is_grad_enabled():
        return False
    values = (node.meta.get("example_value") for node in gm.graph.nodes if node.op == "placeholder")
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


def capture(gm: fx.GraphModule) -> fx.GraphModule:
    """Export a Dynamo graph; placeholders keep their order, ``node.meta["val"]`` holds fake values.

    Must run inside the backend call, while Dynamo's tracing context is active. ``gm`` is not changed.

    Raises:
        UnsupportedGraphError: the graph mutates its inputs, or cannot be exported.
    """
    context = TracingContext.try_get()
    if context is None or context.fake_mode is None:
        raise UnsupportedGraphError("requires Dynamo's tracing context, got none; use torch.compile")
    fakes: list[Any] = [n.meta.get("example_value") for n in gm.graph.nodes if n.op == "placeholder"]
    try:
        with tracing(TracingContext(context.fake_mode)), torch.no_grad():
            exported, signature = aot_export_module(
                gm, fakes, trace_joint=False, pre_dispatch=True, decompositions={}
            )
    except Exception as error:
        # A graph's inputs would make of one reason as many as there are graphs.
        first_line = (str(error).splitlines() or [""])[0].partition(", placeholders=")[0]
        raise UnsupportedGraphError(f"not exportable: {type(error).__name__}: {first_line}") from error
    if signature.user_inputs_to_mutate or signature.buffers_to_mutate:
        raise UnsupportedGraphError("mutates its inputs")
    assert isinstance(exported, fx.GraphModule), "aot_export_module returned no graph"
    # Plain Inductor's graph has no such checks, and they would hide attention with casts from its patterns.
    DropAssertions()(exported)
    keep_marks(gm, exported)
    exported.recompile()
    return exported
