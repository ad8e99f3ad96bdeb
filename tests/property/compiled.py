"""Random programs through Dynamo and Inductor: untouched, by the backend's route, and pruned as when run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tests.passes.graphs import quick_tracing, rewritten
from tests.property import reference
from tests.property.programs import Shape, program
from tests.property.strategies import Case
from toprovar_compiler.capture import capture
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.drop_assertions import DropAssertions
from toprovar_compiler.passes.fuse_entropy import FuseEntropy
from toprovar_compiler.passes.graph_tools import outputs, placeholders, value_of
from toprovar_compiler.passes.insert_gate import InsertGate
from toprovar_compiler.passes.match_attention import MatchAttention
from toprovar_compiler.passes.prune_tokens import PrunedKeys, PruneTokens
from toprovar_compiler.passes.token_axis import find_token_stream
from toprovar_compiler.rewritten_graphs import PLAIN, RewrittenGraphs
from toprovar_compiler.shared_variants import SharedVariants
from toprovar_compiler.variants import Compiled, Variant, compile_here, compile_variant

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """Inputs of one size."""

    shape: Shape
    inputs: Inputs

    @staticmethod
    def of(case: Case, shape: Shape, seed: int, room: int) -> Call:
        """With ``room``, tokens and caches lie in buffers of ``room`` tokens more, with strides to match."""
        inputs = reference.make_inputs(shape, case.blocks, seed)
        for name, axes in reference.dynamic_axes(inputs).items() if room else ():
            (axis,) = axes
            value = inputs[name]
            sizes = list(value.shape)
            sizes[axis] += room
            inputs[name] = value.new_full(sizes, torch.nan).narrow(axis, 0, value.shape[axis]).copy_(value)
        return Call(shape, inputs)


class Route:
    """A program as Dynamo hands it to a backend: one graph, run by whatever a call names.

    Attributes:
        untouched: Dynamo's graph, compiled as ``torch.compile`` does by default; None if not asked for.
        dense: what the backend compiles in its place to run every token; likewise.
        typed: the captured graph ready to be pruned; None where that is refused, for ``reason``.
    """

    def __init__(self, case: Case, inputs: Inputs, *, with_dense: bool) -> None:
        torch._dynamo.reset()
        self.case = case
        self.untouched: Compiled | None = None
        self.dense: Compiled | None = None
        self.typed: fx.GraphModule | None = None
        self.reason = ""
        self._with_dense, self._traced = with_dense, False
        self._run: Compiled | None = None
        self._function = torch.compile(
            lambda given: program(case.blocks, case.shape, given), backend=self._compile, fullgraph=True
        )
        with torch.fx.experimental._config.patch(use_duck_shape=case.duck), quick_tracing():
            self(inputs, None)

    def __call__(self, inputs: Inputs, run: Compiled | None) -> list[object] | None:
        """What the program returns when ``run`` (None: Dynamo's graph, eager) computes its graph.

        None if Dynamo does not take its graph for inputs of these sizes.
        """
        axes = reference.dynamic_axes(inputs, batch=self.case.dynamic_batch, text=self.case.dynamic_text)
        for name, where in axes.items():
            for axis in where:
                torch._dynamo.maybe_mark_dynamic(inputs[name], axis)
        self._run, self._fits = run, True
        with torch.no_grad():
            results = list(self._function(inputs))
        return results if self._fits else None

    def _compile(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        if self._traced:
            return functools.partial(self._run_other, gm)
        self._traced = True
        captured = self._capture(gm)
        if self._with_dense:
            self.dense = functools.partial(_dense, SharedVariants(), captured)
            self.untouched = compile_here(gm, example_inputs)
        return lambda *arguments: (self._run or gm)(*arguments)

    def _run_other(self, gm: fx.GraphModule, *arguments: Any) -> Any:
        self._fits = False
        return gm(*arguments)

    def _capture(self, gm: fx.GraphModule) -> fx.GraphModule:
        """The graph that the backend compiles: the captured one, or ``gm`` where it cannot be captured."""
        captured = gm
        try:
            captured = capture(gm)
            typed = rewritten(captured, DropAssertions(), MatchAttention())
            find_token_stream(typed.graph)
            self.typed = typed
        except UnsupportedGraphError as error:
            self.reason = str(error)
        return captured


def _dense(variants: SharedVariants, captured: fx.GraphModule, *arguments: Any) -> Any:
    sizes = tuple(value for value in arguments if isinstance(value, int))
    bound, _ = variants.bind(RewrittenGraphs(captured, captured), PLAIN, arguments, sizes, {})
    return bound.run(*arguments)


@dataclass
class Added:
    """What a pruned graph is given beside its own arguments.

    Attributes:
        base: [B, N, C], what the tokens become that are not kept.
        keep: K.
        chosen: [B, K] indices of kept tokens; or entropies [G, N] that the graph's own gate chooses from.
    """

    base: Tensor
    keep: int
    chosen: Tensor


@dataclass
class Pruned:
    """The pruned variants of one graph, compiled when first needed, as the run time does.

    Attributes:
        rows_per_sample: with the gate inside the graph, how many rows share an index; None: no gate.
        refused: how often a variant was there and did not accept the sizes.
        maps, index: entropy maps of the last call, and the index that its gate chose.
    """

    typed: fx.GraphModule
    keys: PrunedKeys
    rows_per_sample: int | None
    refused: int = 0
    maps: list[Tensor] = field(default_factory=list)
    index: Tensor | None = None
    _variants: list[Variant] = field(default_factory=list)

    def __post_init__(self) -> None:
        stream = find_token_stream(self.typed.graph)
        inputs = placeholders(self.typed.graph)
        self._sizes = [i for i, n in enumerate(inputs) if isinstance(value_of(n), torch.SymInt)]
        self._returned, self._maps = len(outputs(self.typed.graph)), len(stream.attention)

    def runner(self, added: Added) -> Compiled:
        """Runs a variant on a graph's arguments; returns what the dense graph does."""

        def run(*arguments: Any) -> Sequence[Any]:
            gated = self.rows_per_sample is not None
            extra = (added.chosen, added.keep, added.base) if gated else (added.chosen, added.base)
            sizes = (*(arguments[i] for i in self._sizes), added.keep)
            results = self._variant(sizes, (*arguments, *extra)).run(*arguments, *extra)
            self.maps = list(results[self._returned : self._returned + self._maps])
            self.index = results[-1] if gated else None
            return results[: self._returned]

        return run

    def _variant(self, sizes: tuple[int, ...], given: Sequence[Any]) -> Variant:
        for variant in self._variants:
            if variant.accepts(sizes, given):
                return variant
        self.refused += bool(self._variants)
        gate = () if self.rows_per_sample is None else (InsertGate(self.rows_per_sample),)
        graph = rewritten(self.typed, PruneTokens(self.keys), FuseEntropy(), *gate)
        variant = compile_variant(graph, self.typed.graph, given)
        variant.accepted.add(sizes)
        self._variants.append(variant)
        return variant
