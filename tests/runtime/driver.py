"""Drives a session as compiled blocks would, without any block."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.counters import Work
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.session import Session

WIDTH = 4


class Driver:
    """A model of ``layers`` layers whose cache grows by what is kept."""

    def __init__(
        self, *, layers: int = 3, schedule: tuple[int, ...] | None = None, **options: object
    ) -> None:
        self.session = Session("driven", Options(**options), schedule)  # type: ignore[arg-type]
        self.layers, self.cache = layers, 0

    def block(self, layer: int, tokens: int, rows: int = 2, kept: Tensor | None = None) -> Step:
        """One block call that keeps ``kept`` [samples, K], or everything."""
        step = self.session.enter(1000 + layer, tokens, self.cache + tokens, rows)
        x = torch.zeros(rows, tokens, WIDTH)
        run = tokens if kept is None else kept.shape[1]
        outcome = Outcome(None, kept, x, x, self.cache + run)
        self.session.leave(step, outcome, Work(rows * tokens, rows * run, 2, 1))
        return step

    def scale(self, tokens: int, rows: int = 2, kept: Tensor | None = None) -> list[Step]:
        """All layers of one scale."""
        steps = [self.block(layer, tokens, rows, kept) for layer in range(self.layers)]
        self.cache += tokens if kept is None else kept.shape[1]
        return steps

    def empty_cache(self) -> None:
        self.cache = 0

    def generate(self, schedule: tuple[int, ...], rows: int = 2) -> list[Step]:
        """One dense generation."""
        self.empty_cache()
        return [step for tokens in schedule for step in self.scale(tokens, rows)]


def codes(samples: int, tokens: int) -> Tensor:
    return torch.zeros(samples, tokens, dtype=torch.long)
