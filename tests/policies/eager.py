"""Direct eager implementations of the peers, on the untouched class-conditional toy.

They share no code with toprovar: blocks run on gathered tokens, and tokens are chosen in plain Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

Rows = list[list[int]]


def stopped(model: Any, labels: Tensor, scales: int) -> Tensor:
    """The picture [B, C, G, G] of the first scales alone, by a model whose loop ends there."""
    with pytest.MonkeyPatch.context() as patch:
        codebook = model.vae_proxy[0]
        add, done = codebook.add, []

        def add_early(f_hat: Tensor, idx: Tensor, side: int) -> Tensor:
            done.append(side)
            return add(f_hat, idx, side) if len(done) <= scales else f_hat

        patch.setattr(codebook, "add", add_early)
        return model.autoregressive_infer_cfg(labels)


def highest(values: list[float], keep: int) -> list[int]:
    """Positions of the largest values, in ascending order; of equal ones the first."""
    return sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep])


class EagerBlocks:
    """Runs a model's blocks on chosen tokens only.

    Args:
        choose: (scale, layer, x [B, N, C]) -> for every row the tokens to keep, or None for all.
        restore: (scale, layer, x [B, N, C]) -> [B, N, C], what tokens become that are not kept.
        watch: (scale, layer, x, y) is told of every block that ran in full.
    """

    def __init__(
        self,
        model: Any,
        choose: Callable[[int, int, Tensor], Rows | None],
        restore: Callable[[int, int, Tensor], Tensor] = lambda scale, layer, x: x,
        watch: Callable[[int, int, Tensor, Tensor], None] = lambda *_: None,
    ) -> None:
        self.model, self.choose, self.restore, self.watch = model, choose, restore, watch
        self.scale = -1
        self.kept: dict[tuple[int, int], Rows] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for layer, block in enumerate(self.model.blocks):
                patch.setattr(block, "forward", self._wrapped(layer, block.forward))
            yield

    def _wrapped(self, layer: int, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, cond_BD: Tensor) -> Tensor:
            self.scale += layer == 0
            rows = self.choose(self.scale, layer, x)
            if rows is None:
                y = forward(x=x, cond_BD=cond_BD)
                self.watch(self.scale, layer, x, y)
                return y
            self.kept[self.scale, layer] = rows
            gathered = torch.stack([x[row, kept] for row, kept in enumerate(rows)])
            computed = forward(x=gathered, cond_BD=cond_BD)
            restored = self.restore(self.scale, layer, x).clone()
            for row, kept in enumerate(rows):
                restored[row, kept] = computed[row]
            return restored

        return run


class FastvarEager:
    """FastVAR on whole blocks: farthest from the mean, cached update of the last scale in full, by area."""

    def __init__(self, model: Any, start: int, ratio: float, layers: tuple[int, ...]) -> None:
        self.start, self.ratio, self.layers = start, ratio, layers
        self.updates: dict[int, Tensor] = {}
        self.blocks = EagerBlocks(model, self._choose, self._restore, self._watch)

    def _choose(self, scale: int, layer: int, x: Tensor) -> Rows | None:
        keep = round(self.ratio * x.shape[1])
        if scale < self.start or layer not in self.layers:
            return None
        return [self._farthest(tokens, keep) for tokens in x]

    @staticmethod
    def _farthest(tokens: Tensor, keep: int) -> list[int]:
        mean = tokens.sum(0) / len(tokens)
        return highest([float(((token - mean) ** 2).sum()) for token in tokens], keep)

    def _restore(self, scale: int, layer: int, x: Tensor) -> Tensor:
        update = self.updates[layer]
        old, new = isqrt(update.shape[1]), isqrt(x.shape[1])
        grid = update.transpose(1, 2).reshape(len(x), -1, old, old)
        return x + F.interpolate(grid, size=(new, new), mode="area").flatten(2).transpose(1, 2)

    def _watch(self, scale: int, layer: int, x: Tensor, y: Tensor) -> None:
        if scale == self.start - 1:
            self.updates[layer] = y - x
