"""The graphs that are made of a captured one: with entropy, pruned, with a gate."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import NamedTuple, cast

from torch import fx

from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.base import GraphPass
from toprovar_compiler.passes.fuse_entropy import FuseEntropy
from toprovar_compiler.passes.graph_tools import clone
from toprovar_compiler.passes.insert_gate import InsertGate
from toprovar_compiler.passes.lift_numbers import form, numbers
from toprovar_compiler.passes.manager import PassManager
from toprovar_compiler.passes.prune_tokens import PrunedKeys, PruneTokens
from toprovar_compiler.variants import Compiled


class Recipe(NamedTuple):
    """Which passes make a variant: pruned keys (None: dense), whether entropy maps are returned, and the rows
    that share an index where the graph chooses it itself (None: it is given)."""

    pruned_keys: PrunedKeys | None
    maps: bool
    gated_rows: int | None = None

    @property
    def name(self) -> str:
        """Of the variant's dumps."""
        parts = ["dense" if self.pruned_keys is None else f"pruned-keys-{self.pruned_keys}"]
        parts += ["entropy"] * self.maps
        if self.gated_rows is not None:
            parts.append(f"gate-of-{self.gated_rows}-rows")
        return "-".join(parts)

    def passes(self) -> tuple[GraphPass, ...]:
        passes: list[GraphPass] = []
        if self.pruned_keys is not None:
            passes.append(PruneTokens(self.pruned_keys))
        # The gate returns its index last, behind the entropy maps: fuse before the gate goes in.
        if self.maps:
            passes.append(FuseEntropy())
        if self.gated_rows is not None:
            passes.append(InsertGate(self.gated_rows))
        return tuple(passes)


PLAIN = Recipe(None, maps=False)
WITH_ENTROPY = Recipe(None, maps=True)


class Description(NamedTuple):
    """All that tells a graph from others; see :mod:`toprovar_compiler.passes.lift_numbers`."""

    form: Hashable
    numbers: tuple[int, ...]


class RewrittenGraphs:
    """Makes the variants of one captured graph; neither it nor its typed form is changed.

    Args:
        captured: what plain variants are copies of.
        typed: the same with its attention matched; what all others are made of.
    """

    def __init__(self, captured: fx.GraphModule, typed: fx.GraphModule) -> None:
        self._captured, self._typed = captured, typed
        self._described: dict[Recipe, Description | None] = {}
        self._interpreted: dict[Recipe, Compiled] = {}

    @functools.cached_property
    def form(self) -> Hashable:
        """Of the captured graph: equal for graphs that differ in a few numbers only."""
        return form(self._captured)

    def pattern(self, recipe: Recipe) -> fx.GraphModule:
        """What a variant is made of."""
        return self._captured if recipe == PLAIN else self._typed

    def make(self, recipe: Recipe) -> fx.GraphModule:
        """A variant, the caller's to change.

        Raises:
            UnsupportedGraphError: the graph cannot be rewritten so.
        """
        graph = clone(self.pattern(recipe))
        PassManager(recipe.passes(), recipe.name)(graph)
        return graph

    def described(self, recipe: Recipe) -> Description | None:
        """Of a variant that is not made for itself; None where it cannot be made."""
        if recipe not in self._described:
            graph = clone(self.pattern(recipe))
            try:
                # Not by a PassManager: what is not compiled is not dumped.
                for each in recipe.passes():
                    each(graph)
                self._described[recipe] = Description(form(graph), numbers(graph.graph))
            except UnsupportedGraphError:
                self._described[recipe] = None
        return self._described[recipe]

    def interpreted(self, recipe: Recipe) -> Compiled:
        """A variant that runs operator by operator."""
        if recipe not in self._interpreted:
            self._interpreted[recipe] = cast(Compiled, self.make(recipe).forward)
        return self._interpreted[recipe]
