"""One model four ways, taking turns: eager, plain Inductor, dense and pruned under toprovar."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import toprovar_compiler
from toprovar_compiler.api import is_learning
from toprovar_compiler.blocks import find_blocks
from toprovar_compiler.cli_model import paint
from toprovar_compiler.options import DEFAULT_MODE, GRAPH_MODES, Mode

EAGER, INDUCTOR, DENSE, PRUNED = "eager", "Inductor", "toprovar dense", "toprovar"
PLAIN_BACKEND = "inductor"


@dataclass
class Contender:
    """A model, its times in seconds (the first generation apart) and its warm pictures [3, H, W]."""

    name: str
    model: nn.Module
    cold_s: float = 0.0
    recordings: int = 0
    """Further generations of the warm-up, in which CUDA graphs are recorded."""
    warm_s: list[float] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)

    def warm_up(self, prompt: str, seed: int) -> None:
        """The first generation, which compiles; after one to learn from, the next one does as well."""
        _, self.cold_s = self._paint(prompt, seed)
        for _ in range(is_learning(self.model) + self.recordings):
            self._paint(prompt, seed)

    def turn(self, prompt: str, seed: int) -> None:
        """One warm generation of one picture."""
        picture, seconds = self._paint(prompt, seed)
        self.pictures.append(picture)
        self.warm_s.append(seconds)

    def times(self) -> dict[str, Any]:
        return {
            "cold_s": self.cold_s,
            "warm_s": self.warm_s,
            "median_s": statistics.median(self.warm_s),
            "min_s": min(self.warm_s),
            "max_s": max(self.warm_s),
        }

    def _paint(self, prompt: str, seed: int) -> tuple[Tensor, float]:
        _wait_for_gpu()
        # As all who run Inductor's CUDA graphs over many calls have to; toprovar does so by itself.
        torch.compiler.cudagraph_mark_step_begin()
        start = time.perf_counter()
        pictures = paint(self.model, [prompt], seed)
        _wait_for_gpu()
        seconds = time.perf_counter() - start
        return pictures[0].detach().float().cpu(), seconds


def make_contenders(model: nn.Module, options: Mapping[str, Any]) -> tuple[Contender, ...]:
    """The four, in the order of the constants above; ``options`` are those of the pruned one.

    Raises:
        OptionError: an option is unknown, out of range or does not fit the model.
        UnsupportedModelError: the model has no repeated blocks.
    """
    inductor, dense, pruned = (twin(model) for _ in range(3))
    where, mode = options.get("blocks"), options.get("mode", DEFAULT_MODE)
    toprovar_compiler.compile(pruned, **options)
    toprovar_compiler.compile(dense, policy="dense", blocks=where, mode=mode)
    compile_plainly(inductor, mode, where)
    recordings = recordings_of(mode)
    return (
        Contender(EAGER, model),
        Contender(INDUCTOR, inductor, recordings=recordings),
        Contender(DENSE, dense, recordings=recordings),
        Contender(PRUNED, pruned, recordings=recordings),
    )


def compile_plainly(model: nn.Module, mode: Mode, blocks: str | None = None) -> None:
    """The model's blocks under plain Inductor in a mode of ``torch.compile``."""
    for block in find_blocks(model, blocks):
        block.compile(backend=PLAIN_BACKEND, mode=mode, dynamic=None)


def recordings_of(mode: Mode) -> int:
    """How many generations after the first it takes until all CUDA graphs are recorded.

    Inductor warms up in one and records in the next. Before that a scale's block calls are followed once
    without compiling, and once compared, see :mod:`toprovar_compiler.scale_graphs`.
    """
    return 4 if mode in GRAPH_MODES else 0


def speedup(slow: Contender, fast: Contender) -> float:
    """Median over the prompts of how many times faster ``fast`` painted the same prompt."""
    return statistics.median(a / b for a, b in zip(slow.warm_s, fast.warm_s, strict=True))


def psnr(ours: Iterable[Tensor], reference: Iterable[Tensor]) -> float | None:
    """Median peak signal-to-noise ratio in dB of pictures in [0, 1]; None if the median pair is equal."""
    errors = [float((a - b).square().mean()) for a, b in zip(ours, reference, strict=True)]
    error = statistics.median(errors)
    return None if error == 0 else float(-10 * torch.tensor(error, dtype=torch.float64).log10())


def twin(model: nn.Module) -> nn.Module:
    """A copy with the same parameters and a state (caches, buffers) of its own."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
