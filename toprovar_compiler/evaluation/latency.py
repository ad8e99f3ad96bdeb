"""Whole generations of one picture, all contenders in turn: eager, plain Inductor, every policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from toprovar_compiler.blocks import find_blocks
from toprovar_compiler.cli_progress import Progress
from toprovar_compiler.demo_contenders import EAGER, INDUCTOR, PLAIN_BACKEND, Contender, twin
from toprovar_compiler.evaluation.painter import DENSE, show_dense, to_floats, under_policy
from toprovar_compiler.evaluation.store import Store
from toprovar_compiler.evaluation.units import Unit


def take_turns(
    model: nn.Module, policies: Sequence[str], options: Mapping[str, Any], units: Sequence[Unit], store: Store
) -> list[dict[str, float]]:
    """Seconds of every contender for every unit; turns that are in the store already are not taken again.

    Each contender's first generation, which compiles, comes before all turns and counts nowhere. A turn
    that misses a contender (a policy that was added later) is taken again by all: only what ran side by
    side is compared.

    Raises:
        ArtifactError: a dense picture is missing or damaged.
        OptionError: an option does not fit the model.
        UnsupportedModelError: the model has no repeated blocks.
    """
    names = {EAGER, INDUCTOR, *policies}
    known = [store.read_times(turn) for turn in range(len(units))]
    due = [turn for turn, seconds in enumerate(known) if seconds is None or not names <= seconds.keys()]
    if due:
        _time(_contenders(model, policies, options), units, due, store)
    taken = [store.read_times(turn) for turn in range(len(units))]
    return [seconds for seconds in taken if seconds is not None]


def _time(contenders: Sequence[Contender], units: Sequence[Unit], due: Sequence[int], store: Store) -> None:
    dense = to_floats(store.read_pictures(DENSE, units))
    with Progress(len(contenders) * (1 + len(due))) as progress, torch.no_grad():
        for contender in contenders:
            progress.step(f"{contender.name}: first picture, not timed")
            show_dense(contender.model, contender.name, dense[:1])
            contender.warm_up(units[0].text, units[0].seed)
        for turn in due:
            for contender in contenders:
                progress.step(f"{contender.name}: time of {units[turn].text}")
                show_dense(contender.model, contender.name, dense[turn : turn + 1])
                contender.turn(units[turn].text, units[turn].seed)
            store.write_times(turn, {contender.name: contender.warm_s[-1] for contender in contenders})


def _contenders(model: nn.Module, policies: Sequence[str], options: Mapping[str, Any]) -> list[Contender]:
    # Batches of another size were compiled before: Dynamo would now make that size symbolic in all graphs.
    torch._dynamo.reset()
    plain, pruned = twin(model), twin(model)
    for block in find_blocks(plain):
        block.compile(backend=PLAIN_BACKEND, dynamic=None)
    policied = [Contender(policy, under_policy(pruned, policy, options)) for policy in policies]
    return [Contender(EAGER, model), Contender(INDUCTOR, plain), *policied]
