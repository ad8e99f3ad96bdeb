"""Compiles a graph, or a rewritten version of it, with Inductor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from toprovar_compiler.passes.graph_tools import placeholders, value_of
from toprovar_compiler.static_inputs import show_marks

Compiled = Callable[..., Sequence[Any]]

# Inductor and Dynamo keep process-wide state while they compile.
COMPILE_LOCK = threading.RLock()

_DEFAULT: Mapping[str, Any] = {}


def compile_here(
    gm: fx.GraphModule, example_inputs: Sequence[Any], settings: Mapping[str, Any] = _DEFAULT
) -> Compiled:
    """Compile inside Dynamo's backend call: what Inductor assumes of sizes becomes Dynamo's guards.

    ``settings`` are what Inductor's configuration is changed by, as for :func:`compile_variant`.
    """
    with COMPILE_LOCK:
        show_marks(gm)
        return cast(Compiled, compile_fx(gm, list(example_inputs), config_patches=dict(settings)))


@dataclass
class Variant:
    """A rewritten graph, compiled outside Dynamo, with the size assumptions that it was compiled under."""

    run: Compiled
    shape_env: ShapeEnv
    fakes: list[Any]
    accepted: set[tuple[int, ...]] = field(default_factory=set)

    def accepts(self, sizes: tuple[int, ...], arguments: Sequence[Any]) -> bool:
        """Whether these arguments meet the assumptions; asked once for each new combination of sizes."""
        if sizes in self.accepted:
            return True
        holds = bool(self.shape_env.evaluate_guards_for_args(self.fakes, list(arguments), ignore_static=True))
        if holds:
            self.accepted.add(sizes)
        return holds


def compile_variant(
    gm: fx.GraphModule, pattern: fx.Graph, arguments: Sequence[Any], settings: Mapping[str, Any] = _DEFAULT
) -> Variant:
    """Compile ``gm`` lazily, in a fresh fake mode, for arguments like these.

    Args:
        gm: the rewritten graph; its first placeholders are ``pattern``'s, in order.
        pattern: the captured graph: a size is dynamic where it is symbolic there.
        arguments: real arguments, those of ``pattern`` first. Of the added ones every tensor size but the
            last is dynamic, and every int is a dynamic size.
        settings: what Inductor's configuration is changed by.
    """
    with COMPILE_LOCK:
        # Sizes that happen to be equal now (K of one scale, N of another) must not become one symbol.
        shape_env = ShapeEnv(duck_shape=False)
        mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
        fakes = _fakes(mode, shape_env, [value_of(n) for n in placeholders(pattern)], arguments)
        with tracing(TracingContext(mode)):
            show_marks(gm)
            run = cast(Compiled, compile_fx(gm, list(fakes), config_patches=dict(settings)))
        return Variant(run, shape_env, fakes)


def _fakes(mode: FakeTensorMode, shape_env: ShapeEnv, like: list[Any], arguments: Sequence[Any]) -> list[Any]:
    fakes: list[Any] = [None] * len(arguments)
    symbols: dict[Any, Any] = {}
    for position, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            old = like[position] if position < len(like) else None
            fakes[position] = _fake_tensor(mode, argument, old, position)
            if old is not None:
                _remember(
                    symbols, (*old.shape, *old.stride()), (*fakes[position].shape, *fakes[position].stride())
                )
    for position, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            continue
        old = like[position] if position < len(like) else None
        known = symbols.get(old.node.expr) if isinstance(old, torch.SymInt) else None
        if known is not None:
            fakes[position] = known
        elif isinstance(argument, int) and (old is None or isinstance(old, torch.SymInt)):
            fakes[position] = shape_env.create_unspecified_symint_and_symbol(
                argument, ConstantSource(f"argument{position}"), DimDynamic.DYNAMIC
            )
        else:
            fakes[position] = argument
    return fakes


def _fake_tensor(mode: FakeTensorMode, tensor: torch.Tensor, old: torch.Tensor | None, position: int) -> Any:
    if old is None:
        dynamic = [axis < tensor.dim() - 1 or tensor.dim() == 2 for axis in range(tensor.dim())]
    else:
        dynamic = [isinstance(size, torch.SymInt) for size in old.shape]
    sizes = [DimDynamic.DYNAMIC if d else DimDynamic.STATIC for d in dynamic]
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(tensor, symbolic_context=context, source=ConstantSource(f"argument{position}"))


def _remember(symbols: dict[Any, Any], old: Sequence[Any], new: Sequence[Any]) -> None:
    for before, after in zip(old, new, strict=True):
        if isinstance(before, torch.SymInt):
            symbols.setdefault(before.node.expr, after)
