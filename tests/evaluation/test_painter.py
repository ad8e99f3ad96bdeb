"""A policy that learns from its first generation paints a batch alike, whatever was painted before."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.evaluation.conftest import new_process
from tests.toy_painters import toy
from toprovar_compiler.evaluation.painter import Painter
from toprovar_compiler.evaluation.units import make_batches
from toprovar_compiler.evaluation.variants import parse_variants

BATCHES = make_batches(["a cat", "two apples", "a mug", "a car", "three keys", "a fox"], 1, seed=3, size=2)


def _painted(*numbers: int) -> list[Tensor]:
    """Pictures of these batches, by a process that has painted nothing yet."""
    with new_process():
        model = toy(device=torch.device("cpu"), dtype=torch.float32)
        (variant,) = parse_variants(["toprovar[entropy_source=online]"], {"keep_ratio": 0.5})[1:]
        painter = Painter(model, variant, BATCHES[0])
        pictures, counts = zip(*(painter.paint(BATCHES[number], None) for number in numbers), strict=True)
        for counted in counts:
            assert counted["fallbacks"] == {}, "what was learned from is not counted as painted"
            assert counted["tokens_computed"] < counted["tokens_total"]
        return list(pictures)


def test_every_process_learns_from_the_runs_first_batch() -> None:
    together = _painted(0, 1, 2)
    assert torch.equal(together[2], _painted(2)[0])
    assert all(torch.equal(a, b) for a, b in zip(together[:2], reversed(_painted(1, 0)), strict=True))
