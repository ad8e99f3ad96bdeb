"""The two parts of a run that processes share: true scenes, and the pictures of all policies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from toprovar_compiler.cli_progress import Progress
from toprovar_compiler.evaluation.judging import Judge, Reference
from toprovar_compiler.evaluation.painter import Painter, to_bytes, to_floats
from toprovar_compiler.evaluation.store import TRUE_SCENES, Store
from toprovar_compiler.evaluation.suite import Suite
from toprovar_compiler.evaluation.units import Batch
from toprovar_compiler.evaluation.variants import DENSE


def judge_true_scenes(
    store: Store, suite: Suite, batches: Sequence[Batch], device: torch.device, show: bool
) -> None:
    """Score the suite's own pictures of all prompts that are due: quick, and it finds foreign prompts early.

    Raises:
        ValueError: the suite refuses a prompt.
    """
    judge = Judge(suite)
    due = [batch for batch in batches if not store.has(TRUE_SCENES, batch)]
    with Progress(len(due), show=show) as progress:
        for batch in due:
            progress.step(f"true scenes, batch {batch.number}")
            # one by one: what belongs to a seed must not depend on the batch
            scenes = torch.cat([suite.true_images([unit.text], unit.seed) for unit in batch.units])
            pictures = to_floats(to_bytes(scenes.float())).to(device)
            records = judge.records(batch.units, pictures, None)
            store.write_unit(TRUE_SCENES, batch, {"pictures": records})


def paint_policies(
    store: Store, suite: Suite | None, painters: Sequence[Painter], batches: Sequence[Batch], show: bool
) -> None:
    """Paint and judge what is due, batch by batch, all policies of a batch before the next batch.

    In the first batch that is due every policy paints, also one that is finished: graphs are compiled for
    the sizes that come first, so every process must meet them in the same order to give the same numbers.
    What is finished stays as it is.

    Args:
        painters: the dense one first.
    """
    judge = Judge(suite)
    due = {batch.number: [p for p in painters if not store.has(p.variant.name, batch)] for batch in batches}
    begun = [batch for batch in batches if due[batch.number]]
    for first in begun[:1]:
        due[first.number] = list(painters)
    with Progress(sum(map(len, due.values())), show=show) as progress:
        for batch in begun:
            reference: Reference | None = None
            if painters[0] not in due[batch.number]:
                reference = judge.reference(store.read_pictures(DENSE, batch.units).to(painters[0].device))
            for painter in due[batch.number]:
                progress.step(f"{painter.variant.name}, batch {batch.number}: {batch.units[0].text}")
                reference = _paint(store, judge, painter, batch, reference)


def _paint(
    store: Store, judge: Judge, painter: Painter, batch: Batch, reference: Reference | None
) -> Reference:
    """Paint, judge and keep a batch, unless it is finished; returns the dense pictures, or those of now."""
    painted, counts = painter.paint(batch, None if reference is None else reference.pictures)
    finished = store.has(painter.variant.name, batch)
    if finished:
        painted = store.read_pictures(painter.variant.name, batch.units).to(painted.device)
    reference = reference or judge.reference(painted)
    if not finished:
        records = judge.records(batch.units, to_floats(painted), reference)
        store.write_pictures(painter.variant.name, batch.units, painted)
        store.write_unit(painter.variant.name, batch, {"counts": counts, "pictures": records})
    return reference
