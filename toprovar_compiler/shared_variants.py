"""Compiled variants, shared by all graphs that differ in a few numbers only.

A block that knows its scale as a number of Python is traced for each scale. Compiled it is once, with the
numbers as inputs in which the graphs differ that are traced by then, and again where a later one differs in
others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from torch import fx
from torch._C._dynamo.guards import GlobalStateGuard

from toprovar_compiler.passes.graph_tools import clone
from toprovar_compiler.passes.lift_numbers import Groups, LiftNumbers, form, numbers
from toprovar_compiler.passes.manager import PassManager
from toprovar_compiler.rewritten_graphs import Recipe, RewrittenGraphs
from toprovar_compiler.static_inputs import marks
from toprovar_compiler.variants import Compiled, Variant, compile_variant

Numbers = tuple[int, ...]


@dataclass
class BoundVariant:
    """A variant for one graph: what it was compiled for, or shared, and given the graph's own numbers.

    Attributes:
        run: takes the graph's arguments.
    """

    run: Compiled
    _variant: Variant
    _lifted: Numbers
    _accepted: set[tuple[int, ...]] = field(default_factory=set)

    def accepts(self, sizes: tuple[int, ...], arguments: Sequence[Any]) -> bool:
        """Whether these arguments meet the variant's assumptions; asked once per combination of sizes."""
        if sizes in self._accepted:
            return True
        holds = self._variant.accepts((*sizes, *self._lifted), (*arguments, *self._lifted))
        if holds:
            self._accepted.add(sizes)
        return holds


class SharedVariants:
    """All variants of a model's blocks."""

    def __init__(self) -> None:
        self.graphs: WeakSet[RewrittenGraphs] = WeakSet()
        """Of all blocks that Dynamo has traced so far."""
        self._kinds: dict[Hashable, list[_Known]] = defaultdict(list)

    def bind(
        self,
        graphs: RewrittenGraphs,
        recipe: Recipe,
        arguments: Sequence[Any],
        sizes: tuple[int, ...],
        settings: Mapping[str, Any],
    ) -> tuple[BoundVariant, bool]:
        """A variant for these arguments, and whether it was compiled for that.

        Args:
            graphs, recipe: make the variant's graph.
            arguments, settings: see :func:`~toprovar_compiler.variants.compile_variant`.
            sizes: of the arguments, all that differ between calls.
        """
        gm = graphs.make(recipe)
        own, own_form = numbers(gm.graph), form(gm)
        known = self._kinds[own_form, marks(gm.graph), tuple(sorted(settings.items()))]
        for each in known:
            lifted = each.lifted(own)
            if lifted is not None and each.state.check():
                bound = _bound(each.variant, lifted)
                if bound.accepts(sizes, arguments):
                    return bound, False
        others = [each.numbers for each in known] + self._numbers_of_alike(graphs, recipe, own_form)
        made = _compile(gm, graphs.pattern(recipe).graph, arguments, settings, _groups(own, others))
        known.append(made)
        lifted = made.lifted(own)
        assert lifted is not None, "a variant is for the graph that it was compiled of"
        made.variant.accepted.add((*sizes, *lifted))
        return _bound(made.variant, lifted), True

    def _numbers_of_alike(self, graphs: RewrittenGraphs, recipe: Recipe, own_form: Hashable) -> list[Numbers]:
        """Of the graphs of this form that the same recipe makes of other traced ones, now or later."""
        alike = (each for each in self.graphs if each is not graphs and each.form == graphs.form)
        made = [each.described(recipe) for each in alike]
        return [each.numbers for each in made if each is not None and each.form == own_form]


@dataclass
class _Known:
    """A compiled variant.

    Attributes:
        numbers: of the graph that it was compiled of.
        groups: which of them are inputs.
        state: what else Dynamo makes a graph for, and Inductor may have relied on: precision, determinism.
    """

    variant: Variant
    numbers: Numbers
    groups: Groups
    state: GlobalStateGuard

    def lifted(self, others: Numbers) -> Numbers | None:
        """The inputs that make this the graph with ``others``; None where it is none of the kind."""
        free = {position for group in self.groups for position in group}
        if any(a != b for i, (a, b) in enumerate(zip(self.numbers, others, strict=True)) if i not in free):
            return None
        values = [{others[position] for position in group} for group in self.groups]
        return tuple(value.pop() for value in values) if all(len(value) == 1 for value in values) else None


def _groups(own: Numbers, known: Sequence[Numbers]) -> Groups:
    """The positions whose numbers differ; together those that agree in each graph."""
    groups: dict[Numbers, list[int]] = defaultdict(list)
    for position, values in enumerate(zip(own, *known, strict=True)):
        if len(set(values)) > 1:
            groups[values].append(position)
    return tuple(map(tuple, groups.values()))


def _compile(
    gm: fx.GraphModule,
    pattern: fx.Graph,
    arguments: Sequence[Any],
    settings: Mapping[str, Any],
    groups: Groups,
) -> _Known:
    own = numbers(gm.graph)
    graph = gm
    if groups:
        graph = clone(gm)
        PassManager((LiftNumbers(groups),), "shared")(graph)
    given = (*arguments, *(own[group[0]] for group in groups))
    return _Known(compile_variant(graph, pattern, given, settings), own, groups, GlobalStateGuard())


def _bound(variant: Variant, lifted: Numbers) -> BoundVariant:
    run = variant.run
    if not lifted:
        return BoundVariant(run, variant, lifted)
    return BoundVariant(lambda *arguments: run(*arguments, *lifted), variant, lifted)
