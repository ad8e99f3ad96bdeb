"""What Dynamo calls in place of a captured graph: asks the session, and runs the variant it wants."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import sympy
import torch
from torch import Tensor, fx

from toprovar_compiler.counters import Work
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.kernels.hopper_attention import hopper_shortfall
from toprovar_compiler.passes.attention import Attention
from toprovar_compiler.passes.base import GraphPass
from toprovar_compiler.passes.drop_assertions import DropAssertions
from toprovar_compiler.passes.flops import KEPT, dense_flops, pruned_flops
from toprovar_compiler.passes.fuse_entropy import FuseEntropy
from toprovar_compiler.passes.graph_tools import clone, expr_of, outputs, placeholders, value_of
from toprovar_compiler.passes.insert_gate import InsertGate
from toprovar_compiler.passes.manager import PassManager
from toprovar_compiler.passes.match_attention import MARK, MatchAttention
from toprovar_compiler.passes.prune_tokens import PrunedKeys, PruneTokens
from toprovar_compiler.passes.token_axis import TokenStream, find_source, find_token_stream
from toprovar_compiler.policies.base import Dense, Outcome, Prune, Step
from toprovar_compiler.session import Session
from toprovar_compiler.variants import Compiled, Variant, compile_variant


class Sizes(NamedTuple):
    """What one combination of sizes means: N, the number of keys, the batch rows."""

    tokens: int
    keys: int
    rows: int


class SessionOwner(Protocol):
    """Has the session whose decisions are carried out; it changes with the compilation that runs."""

    def current_session(self) -> Session: ...


class GraphRuntime:
    """One captured graph with its variants: dense, dense with entropy, pruned with and without entropy.

    Entropy is computed where the policy reads it; else attention stays what the model's own is.

    Args:
        captured: the pristine graph (never changed); its self-attention decides what N is.
        dense: the compiled pristine graph.
        owner: has the session whose decisions are carried out.

    Raises:
        UnsupportedGraphError: the graph has no attention over a residual stream; nothing to follow.
    """

    def __init__(self, captured: fx.GraphModule, dense: Compiled, owner: SessionOwner) -> None:
        self.dense, self.owner = dense, owner
        self.returned = len(outputs(captured.graph))
        self.typed = clone(captured)
        PassManager((DropAssertions(), MatchAttention()), "typed")(self.typed)
        self.source, attention = find_source(self.typed.graph)
        inputs = placeholders(self.typed.graph)
        self.stream_position = inputs.index(self.source)
        self._weights = _nearest_matrices(attention[0].query, inputs)
        self._layer_position: int | None = None
        self._attention, self.maps = attention, len(attention)
        self.stream, self.unsupported = _token_stream(self.typed)
        self._sizes = _SizeReader(self.typed.graph, inputs, attention[0])
        self._variants: dict[tuple[object, ...], list[Variant]] = {}
        self._pruned_flops: dict[PrunedKeys, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Sequence[Any]:
        key, sizes = self._sizes(arguments)
        stream = arguments[self.stream_position]
        step = self.owner.current_session().enter(
            self._layer_key(arguments), sizes.tokens, sizes.keys, sizes.rows
        )
        decision = self.owner.current_session().decide(step, stream, self.unsupported)
        if isinstance(decision, Prune):
            return self._run_pruned(arguments, key, sizes, step, decision)
        return self._run_dense(arguments, key, sizes, step, decision)

    def _layer_key(self, arguments: Sequence[Any]) -> int:
        if self._layer_position is None:
            parameters = [i for i in self._weights if isinstance(arguments[i], torch.nn.Parameter)]
            self._layer_position = (parameters or self._weights)[0]
        return id(arguments[self._layer_position])

    def _run_dense(
        self, arguments: Sequence[Any], key: tuple[int, ...], sizes: Sizes, step: Step, decision: Dense
    ) -> Sequence[Any]:
        if decision.entropy and self.unsupported is None:
            results = self._run_variant(("entropy",), (FuseEntropy(),), key, arguments)
        else:
            results = self.dense(*arguments)
        outcome = self._outcome(results, len(results), None, arguments, sizes.keys)
        tokens = sizes.tokens * sizes.rows
        due, done = self._sizes.flops_if_dense(key, step.prefix), self._sizes.flops(key)
        work = Work(tokens, tokens, due, done)
        self.owner.current_session().leave(step, outcome, work, functools.partial(self._sizes.flops_at, key))
        return results[: self.returned]

    def _run_pruned(
        self, arguments: Sequence[Any], key: tuple[int, ...], sizes: Sizes, step: Step, decision: Prune
    ) -> Sequence[Any]:
        pruned_keys = self.owner.current_session().options.pruned_keys
        choice = decision.choice
        # The gate returns its index last, behind the entropy maps: fuse before the gate goes in.
        passes: tuple[GraphPass, ...] = (PruneTokens(pruned_keys),)
        passes += (FuseEntropy(),) if decision.maps else ()
        added = (
            (decision.entropy, decision.keep, decision.base)
            if choice is None
            else (choice.kept_of_rows, decision.base)
        )
        given = (*arguments, *added)
        sizes_key = (*key, decision.keep)
        if choice is not None:
            name: tuple[object, ...] = ("pruned", pruned_keys, decision.maps)
            results = self._run_variant(name, passes, sizes_key, given)
            index = choice.kept
        else:
            passes += (InsertGate(step.rows_per_sample),)
            name = ("gated", pruned_keys, decision.maps, step.rows_per_sample)
            results = self._run_variant(name, passes, sizes_key, given)
            index = results[-1]
        absent = sizes.tokens - decision.keep if pruned_keys == "absent" else 0
        end = self.returned + (self.maps if decision.maps else 0)
        outcome = self._outcome(results, end, index, arguments, sizes.keys - absent)
        tokens = sizes.tokens * sizes.rows
        due = self._sizes.flops_if_dense(key, step.prefix)
        work = Work(tokens, decision.keep * sizes.rows, due, self._flops_of_pruned(key, decision.keep))
        self.owner.current_session().leave(step, outcome, work, functools.partial(self._sizes.flops_at, key))
        return results[: self.returned]

    def _run_variant(
        self,
        name: tuple[object, ...],
        passes: tuple[GraphPass, ...],
        sizes: tuple[int, ...],
        given: Sequence[Any],
    ) -> Sequence[Any]:
        if any(isinstance(each, FuseEntropy) for each in passes):
            for reason in self._slower_kernels:
                # strict=True refuses where pruning could not be done; here all is done, only slower.
                self.owner.current_session().note(reason)
        compiled = self._variants.setdefault(name, [])
        for variant in compiled:
            if variant.accepts(sizes, given):
                return variant.run(*given)
        graph = clone(self.typed)
        PassManager(passes, "-".join(str(part) for part in name))(graph)
        variant = compile_variant(graph, self.typed.graph, given)
        variant.accepted.add(sizes)
        compiled.append(variant)
        self.owner.current_session().graph_compiled()
        return variant.run(*given)

    @functools.cached_property
    def _slower_kernels(self) -> set[str]:
        """Why attention with entropy runs slower than its GPU could; empty where nothing is amiss."""
        queries = ((value_of(each.query), each.node.meta[MARK].dtype) for each in self._attention)
        reasons = (hopper_shortfall(query.device, query.shape[-1], dtype) for query, dtype in queries)
        return {f"attention runs slower than this GPU's Hopper kernel would: {why}" for why in reasons if why}

    def _outcome(
        self, results: Sequence[Any], end: int, index: Tensor | None, arguments: Sequence[Any], keys: int
    ) -> Outcome:
        maps = results[self.returned : end]
        entropy = torch.stack(list(maps)).mean(0) if len(maps) > 1 else (maps[0] if maps else None)
        stream_out = (
            results[self.stream.result] if self.stream is not None else arguments[self.stream_position]
        )
        return Outcome(entropy, index, arguments[self.stream_position], stream_out, keys)

    def _flops_of_pruned(self, key: tuple[int, ...], keep: int) -> int:
        keys = self.owner.current_session().options.pruned_keys
        if keys not in self._pruned_flops:
            assert self.stream is not None, "only typed graphs are pruned"
            expression = pruned_flops(self.typed.graph, self.stream, keys)
            self._pruned_flops[keys] = functools.cache(
                sympy.lambdify((*self._sizes.symbols, KEPT), expression, "math")
            )
        return int(self._pruned_flops[keys](*self._sizes.of_symbols(key), keep))


class _SizeReader:
    """Reads sizes and FLOPs off a call's arguments, once per combination of sizes."""

    def __init__(self, graph: fx.Graph, inputs: list[fx.Node], attention: Attention) -> None:
        values = [value_of(node) for node in inputs]
        self.positions = [i for i, value in enumerate(values) if isinstance(value, torch.SymInt)]
        known = {values[i].node.expr: place for place, i in enumerate(self.positions)}
        self.symbols = [expr for expr in known if isinstance(expr, sympy.Symbol)]
        self._places = [known[symbol] for symbol in self.symbols]
        query, key = value_of(attention.query), value_of(attention.key)
        tokens, keys = expr_of(query.shape[-2]), expr_of(key.shape[-2])
        self._evaluate = sympy.lambdify(self.symbols, [tokens, keys, expr_of(query.shape[0])], "math")
        self._flops = functools.cache(sympy.lambdify(self.symbols, dense_flops(graph), "math"))
        cached = keys - tokens
        self._cached = self.symbols.index(cached) if cached in self.symbols else None
        self._tokens = self.symbols.index(tokens) if tokens in self.symbols else None
        self._known: dict[tuple[int, ...], Sizes] = {}

    def __call__(self, arguments: Sequence[Any]) -> tuple[tuple[int, ...], Sizes]:
        key = tuple([arguments[i] for i in self.positions])
        sizes = self._known.get(key)
        if sizes is None:
            sizes = Sizes(*(int(number) for number in self._evaluate(*self.of_symbols(key))))
            self._known[key] = sizes
        return key, sizes

    def of_symbols(self, key: tuple[int, ...]) -> list[int]:
        return [key[place] for place in self._places]

    def flops(self, key: tuple[int, ...]) -> int:
        """FLOPs of the dense graph at these sizes."""
        return int(self._flops(*self.of_symbols(key)))

    def flops_if_dense(self, key: tuple[int, ...], prefix: int) -> int:
        """The same with the cache as long as if nothing had been pruned at earlier scales."""
        sizes = self.of_symbols(key)
        if self._cached is not None:
            sizes[self._cached] = prefix
        return int(self._flops(*sizes))

    def flops_at(self, key: tuple[int, ...], tokens: int, prefix: int) -> int | None:
        """The same at another scale; None where this graph knows one number of tokens or keys only."""
        if self._cached is None or self._tokens is None:
            return None
        sizes = self.of_symbols(key)
        sizes[self._cached], sizes[self._tokens] = prefix, tokens
        return int(self._flops(*sizes))


def _token_stream(typed: fx.GraphModule) -> tuple[TokenStream | None, str | None]:
    try:
        return find_token_stream(typed.graph), None
    except UnsupportedGraphError as error:
        return None, str(error)


def _nearest_matrices(query: fx.Node, inputs: list[fx.Node]) -> list[int]:
    """Inputs that may tell layers apart: the matrices above the attention's query, the nearest first.

    Modulation weights may be shared by all layers; the projection that makes the query is not.
    """
    queue, seen, found = deque([query]), {query}, []
    while queue:
        node = queue.popleft()
        value = value_of(node)
        if node.op == "placeholder" and isinstance(value, Tensor) and value.dim() == 2:
            found.append(inputs.index(node))
        for operand in node.all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                queue.append(operand)
    if not found:
        raise UnsupportedGraphError("no weight above the attention's query: layers cannot be told apart")
    return found
