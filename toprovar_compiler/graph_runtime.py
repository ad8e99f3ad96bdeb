"""What Dynamo calls in place of a captured graph: asks the session, and runs the variant it wants."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import sympy
import torch
from torch import Tensor, fx

from toprovar_compiler.call_sizes import SizeReader, Sizes
from toprovar_compiler.counters import Work
from toprovar_compiler.cuda_graphs import without_cuda_graphs
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.kernels.hopper_attention import hopper_shortfall
from toprovar_compiler.launches import BlockCall
from toprovar_compiler.passes.drop_assertions import DropAssertions
from toprovar_compiler.passes.flops import KEPT, pruned_flops
from toprovar_compiler.passes.graph_tools import clone, outputs, placeholders, value_of
from toprovar_compiler.passes.manager import PassManager
from toprovar_compiler.passes.match_attention import MARK, MatchAttention
from toprovar_compiler.passes.prune_tokens import PrunedKeys
from toprovar_compiler.passes.token_axis import TokenStream, find_source, find_token_stream
from toprovar_compiler.policies.base import Dense, Outcome, Prune, Step
from toprovar_compiler.rewritten_graphs import PLAIN, WITH_ENTROPY, Recipe, RewrittenGraphs
from toprovar_compiler.session import Session
from toprovar_compiler.shared_variants import BoundVariant, SharedVariants
from toprovar_compiler.variants import Compiled


class SessionOwner(Protocol):
    """Has the session whose decisions are carried out; it changes with the compilation that runs."""

    settings: Mapping[str, Any]
    """What Inductor's configuration is changed by."""
    variants: SharedVariants
    """Of all graphs of this owner."""

    def current_session(self) -> Session: ...

    def buffers(self) -> Iterable[Tensor]:
        """Of all blocks."""


class GraphRuntime:
    """One captured graph with its variants: dense, dense with entropy, pruned with and without entropy.

    Entropy is computed where the policy reads it; else attention stays what the model's own is.

    Each is compiled when it is first called, or shared with a graph that differs in a few numbers.

    Args:
        captured: the pristine graph (never changed); its self-attention decides what N is.
        owner: has the session whose decisions are carried out.

    Raises:
        UnsupportedGraphError: the graph has no attention over a residual stream; nothing to follow.
    """

    def __init__(self, captured: fx.GraphModule, owner: SessionOwner) -> None:
        self.captured, self.owner = captured, owner
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
        self._sizes = SizeReader(self.typed.graph, inputs, attention[0])
        self._graphs = RewrittenGraphs(captured, self.typed)
        owner.variants.graphs.add(self._graphs)
        self._variants: dict[tuple[Recipe, bool], list[BoundVariant]] = {}
        self._pruned_flops: dict[PrunedKeys, Callable[..., Any]] = {}
        # A generation asks for the same few answers at every call.
        self._work = functools.cache(self._count_work)
        self._flops_at = functools.cache(lambda key: functools.partial(self._sizes.flops_at, key))

    def __call__(self, *arguments: Any) -> Sequence[Any]:
        session = self.owner.current_session()
        key, sizes = self._sizes(arguments)
        step = session.enter(self._layer_key(arguments), sizes.tokens, sizes.keys, sizes.rows)
        decision = session.decide(step, arguments[self.stream_position], self.unsupported)
        if isinstance(decision, Prune):
            results, outcome, keep = self._run_pruned(session, arguments, key, sizes, step, decision)
        else:
            results, outcome = self._run_dense(session, arguments, key, sizes, step, decision)
            keep = None
        work = self._work(key, step.prefix, keep, session.options.pruned_keys)
        session.leave(step, outcome, work, self._flops_at(key))
        return results[: self.returned]

    def _layer_key(self, arguments: Sequence[Any]) -> int:
        if self._layer_position is None:
            parameters = [i for i in self._weights if isinstance(arguments[i], torch.nn.Parameter)]
            self._layer_position = (parameters or self._weights)[0]
        return id(arguments[self._layer_position])

    def _run_dense(
        self,
        session: Session,
        arguments: Sequence[Any],
        key: tuple[int, ...],
        sizes: Sizes,
        step: Step,
        decision: Dense,
    ) -> tuple[Sequence[Any], Outcome]:
        recipe = WITH_ENTROPY if decision.entropy and self.unsupported is None else PLAIN
        results = self._run_variant(session, recipe, key, arguments, step)
        return results, self._outcome(results, len(results), None, arguments, sizes.keys)

    def _run_pruned(
        self,
        session: Session,
        arguments: Sequence[Any],
        key: tuple[int, ...],
        sizes: Sizes,
        step: Step,
        decision: Prune,
    ) -> tuple[Sequence[Any], Outcome, int]:
        pruned_keys, choice, keep = session.options.pruned_keys, decision.choice, decision.keep
        added: tuple[Any, ...]
        if choice is not None:
            recipe, added = Recipe(pruned_keys, decision.maps), (choice.kept_of_rows, decision.base)
        else:
            recipe = Recipe(pruned_keys, decision.maps, step.rows_per_sample)
            added = (decision.entropy, keep, decision.base)
        results = self._run_variant(session, recipe, (*key, keep), (*arguments, *added), step)
        index = results[-1] if choice is None else choice.kept
        absent = sizes.tokens - keep if pruned_keys == "absent" else 0
        end = self.returned + (self.maps if decision.maps else 0)
        return results, self._outcome(results, end, index, arguments, sizes.keys - absent), keep

    def _run_variant(
        self, session: Session, recipe: Recipe, sizes: tuple[int, ...], given: Sequence[Any], step: Step
    ) -> Sequence[Any]:
        if recipe.maps:
            for reason in self._slower_kernels:
                # strict=True refuses where pruning could not be done; here all is done, only slower.
                session.note(reason)
        if recipe.pruned_keys is None and session.runs_uncompiled:
            # To compile takes longer than the one generation; the next one knows which graphs are alike.
            run = self._graphs.interpreted(recipe)
        else:
            run = self._variant(session, recipe, sizes, given, recorded=False)
        recorded = functools.partial(self._variant, session, recipe, sizes, given, recorded=True)
        return session.launcher.run(step, BlockCall(run, given, recorded, self.owner.buffers))

    def _variant(
        self,
        session: Session,
        recipe: Recipe,
        sizes: tuple[int, ...],
        given: Sequence[Any],
        *,
        recorded: bool,
    ) -> Compiled:
        """A variant for these arguments; ``recorded``: with a CUDA graph of its own for each call."""
        compiled = self._variants.setdefault((recipe, recorded), [])
        for variant in compiled:
            if variant.accepts(sizes, given):
                return variant.run
        settings = self.owner.settings if recorded else without_cuda_graphs(self.owner.settings)
        variant, new = self.owner.variants.bind(self._graphs, recipe, given, sizes, settings)
        compiled.append(variant)
        if new and not recorded:
            # Recorded, it is no other graph; it is compiled again as soon as it proves to be needed.
            session.graph_compiled()
        return variant.run

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

    def _count_work(
        self, key: tuple[int, ...], prefix: int, keep: int | None, pruned_keys: PrunedKeys
    ) -> Work:
        """What a call of these sizes is due and takes; ``keep`` of the tokens of each row, or all of them."""
        sizes = self._sizes.of(key)
        tokens = sizes.tokens * sizes.rows
        due = self._sizes.flops_if_dense(key, prefix)
        if keep is None:
            return Work(tokens, tokens, due, self._sizes.flops(key))
        return Work(tokens, keep * sizes.rows, due, self._flops_of_pruned(key, keep, pruned_keys))

    def _flops_of_pruned(self, key: tuple[int, ...], keep: int, keys: PrunedKeys) -> int:
        if keys not in self._pruned_flops:
            assert self.stream is not None, "only typed graphs are pruned"
            expression = pruned_flops(self.typed.graph, self.stream, keys)
            self._pruned_flops[keys] = sympy.lambdify((*self._sizes.symbols, KEPT), expression, "math")
        return int(self._pruned_flops[keys](*self._sizes.of_symbols(key), keep))


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
