"""Whole generations of one picture, all contenders in turn: eager, plain Inductor, every policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from toprovar_compiler.cli_progress import Progress
from toprovar_compiler.demo_contenders import (
    EAGER,
    INDUCTOR,
    Contender,
    compile_plainly,
    recordings_of,
    twin,
)
from toprovar_compiler.evaluation.painter import show_dense, to_floats, under_policy
from toprovar_compiler.evaluation.store import Store
from toprovar_compiler.evaluation.units import Unit
from toprovar_compiler.evaluation.variants import DENSE, Variant
from toprovar_compiler.options import DEFAULT_MODE, Mode


def take_turns(
    model: nn.Module, variants: Sequence[Variant], units: Sequence[Unit], store: Store, mode: Mode
) -> list[dict[str, float]]:
    """Seconds of every contender for every unit; turns that are in the store already are not taken again.

    Each contender's first generation, which compiles, comes before all turns and counts nowhere. A turn
    that misses a contender (a policy that was added later) is taken again by all: only what ran side by
    side is compared. Plain Inductor runs in ``mode``, and each policy in its own.

    Raises:
        ArtifactError: a dense picture is missing or damaged.
        OptionError: an option does not fit the model.
        UnsupportedModelError: the model has no repeated blocks.
    """
    names = {EAGER, INDUCTOR, *(variant.name for variant in variants)}
    known = [store.read_times(turn) for turn in range(len(units))]
    due = [turn for turn, seconds in enumerate(known) if seconds is None or not names <= seconds.keys()]
    if due:
        _time(_contenders(model, variants, mode), units, due, store)
    taken = [store.read_times(turn) for turn in range(len(units))]
    return [seconds for seconds in taken if seconds is not None]


def _time(
    contenders: Sequence[tuple[Contender, Variant | None]],
    units: Sequence[Unit],
    due: Sequence[int],
    store: Store,
) -> None:
    """Let all take turns; ``contenders`` come with what they are compiled with, if anything."""
    dense = to_floats(store.read_pictures(DENSE, units))
    with Progress(len(contenders) * (1 + len(due))) as progress, torch.no_grad():
        for contender, variant in contenders:
            progress.step(f"{contender.name}: first picture, not timed")
            if variant is not None:
                show_dense(contender.model, variant, dense[:1])
            contender.warm_up(units[0].text, units[0].seed)
        for turn in due:
            for contender, variant in contenders:
                progress.step(f"{contender.name}: time of {units[turn].text}")
                if variant is not None:
                    show_dense(contender.model, variant, dense[turn : turn + 1])
                contender.turn(units[turn].text, units[turn].seed)
            store.write_times(turn, {contender.name: contender.warm_s[-1] for contender, _ in contenders})


def _contenders(
    model: nn.Module, variants: Sequence[Variant], mode: Mode
) -> list[tuple[Contender, Variant | None]]:
    # Batches of another size were compiled before: Dynamo would now make that size symbolic in all graphs.
    torch._dynamo.reset()
    plain, pruned = twin(model), twin(model)
    compile_plainly(plain, mode)
    inductor = Contender(INDUCTOR, plain, recordings=recordings_of(mode))
    policied = [(_under_policy(pruned, variant), variant) for variant in variants]
    return [(Contender(EAGER, model), None), (inductor, None), *policied]


def _under_policy(model: nn.Module, variant: Variant) -> Contender:
    recordings = recordings_of(variant.options.get("mode", DEFAULT_MODE))
    return Contender(variant.name, under_policy(model, variant), recordings=recordings)
