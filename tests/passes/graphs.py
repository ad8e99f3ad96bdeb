"""Captures functions into graphs as the backend does, and runs rewritten graphs on real tensors."""

from __future__ import annotations

import collections
import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._traceback import CapturedTraceback

from toprovar_compiler.capture import capture
from toprovar_compiler.passes.base import GraphPass
from toprovar_compiler.passes.graph_tools import clone
from toprovar_compiler.passes.manager import PassManager

Inputs = Mapping[str, Tensor]
Axes = Mapping[str, Sequence[int]]
Program = Callable[[dict[str, Tensor]], Any]


def capture_program(program: Program, inputs: Inputs, dynamic: Axes, *, duck: bool = False) -> fx.GraphModule:
    """Capture ``program(dict of tensors)`` without Dynamo: one placeholder for each input, in order.

    Args:
        dynamic: for each input that has any, the axes whose size is symbolic.
        duck: give equal sizes one symbol, as Dynamo does; otherwise each axis has its own.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=duck), allow_non_fake_inputs=True)
    graph = fx.Graph()
    nodes = []
    for name, tensor in inputs.items():
        node = graph.placeholder(name)
        node.meta["example_value"] = _fake(mode, name, tensor, dynamic.get(name, ()))
        nodes.append(node)
    names = list(inputs)

    def run_program(*values: Tensor) -> Any:
        returned = program(dict(zip(names, values, strict=True)))
        return tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)

    graph.output(graph.call_function(run_program, tuple(nodes)))
    with tracing(TracingContext(mode)), torch.no_grad(), quick_tracing():
        return capture(fx.GraphModule(nn.Module(), graph))


def _no_stack(_: CapturedTraceback) -> traceback.StackSummary:
    return traceback.StackSummary()


@contextlib.contextmanager
def quick_tracing() -> Iterator[None]:
    """Leaves out what takes a third of the time and no test reads: a stack trace in each node, a cache."""
    no_stack = mock.patch.object(CapturedTraceback, "summary", _no_stack)
    with no_stack, torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


def _fake(mode: FakeTensorMode, name: str, tensor: Tensor, axes: Sequence[int]) -> Tensor:
    sizes = [DimDynamic.DYNAMIC if axis in axes else DimDynamic.STATIC for axis in range(tensor.dim())]
    context = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(tensor, symbolic_context=context, source=ConstantSource(name))


@dataclass
class Captured:
    """What Dynamo handed to the backend: one graph, its real arguments, what eager code returned."""

    graphs: list[fx.GraphModule] = field(default_factory=list)
    arguments: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        position = len(self.graphs)
        self.graphs.append(capture(gm))
        self.arguments.append(())

        def run(*arguments: Any) -> Any:
            self.arguments[position] = arguments
            return gm(*arguments)

        return run


def capture_calls(function: Callable[..., Any], *calls: Sequence[Any]) -> Captured:
    """Run ``function`` on each of ``calls`` under ``torch.compile``, which captures what it needs to."""
    torch._dynamo.reset()
    captured = Captured()
    compiled = torch.compile(function, backend=captured, dynamic=None)
    with torch.no_grad():
        for call in calls:
            compiled(*call)
    torch._dynamo.reset()
    return captured


def rewritten(gm: fx.GraphModule, *passes: GraphPass) -> fx.GraphModule:
    """A copy of ``gm`` after ``passes``; ``gm`` stays as it is."""
    copy = clone(gm)
    PassManager(passes, "test")(copy)
    return copy


def run(gm: fx.GraphModule, *arguments: Any) -> list[Any]:
    with torch.no_grad():
        return list(gm(*arguments))


def count(gm: fx.GraphModule, target: object) -> int:
    """How many nodes call ``target`` (an overload, or a packet: then any of its overloads)."""
    return sum(
        node.target is target or getattr(node.target, "overloadpacket", None) is target
        for node in gm.graph.nodes
        if node.op == "call_function"
    )


def targets(gm: fx.GraphModule) -> collections.Counter[str]:
    return collections.Counter(str(node.target) for node in gm.graph.nodes if node.op == "call_function")
