"""An eager reference of pruned generation: untouched modules, run on gathered tokens.

It shares no code with toprovar. One picture at a time; entropies are recomputed from the queries and keys in
float64, as -sum p log p, and tokens are chosen in plain Python.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rows = list[float]


def nearest(values: Rows, tokens: int) -> Rows:
    """A map on a square grid, read at another size: cell i of m is cell floor(i n / m) of n."""
    old, new = isqrt(len(values)), isqrt(tokens)
    return [values[y * old // new * old + x * old // new] for y in range(new) for x in range(new)]


def z_scores(values: Rows) -> Rows:
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return [(value - mean) / spread for value in values]


def lowest(values: Rows, keep: int) -> list[int]:
    return sorted(sorted(range(len(values)), key=lambda i: (values[i], i))[:keep])


def entropy_of(query: Tensor, key: Tensor, scale: float | None) -> Rows:
    """Of the first batch row, mean over heads, in nats: one number a query."""
    q, k = query[0].double(), key[0].double()
    p = (q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1)
    logs = torch.where(p > 0, p, 1.0).log()
    return (-(p * logs).sum(-1)).mean(0).tolist()


class Reference:
    """Pruned generation of one picture.

    Args:
        blocks: the model's repeated blocks, in order.
        codebook: the embedding of the codes.
        start, ratio: first pruned scale; share of tokens kept.
        exits: a dropped token leaves the scale (one choice per scale from the mean of z-scores, zero code);
            else each layer is bypassed by its own choice (its own map of the previous scale).
        all_keys: keys and values of dropped tokens are computed too.
        shared: names or positions of arguments that hold rows [N, ...] for the tokens, or tuples of them.
        in_full: layers that compute all tokens at every scale, those too that leave it.
    """

    def __init__(
        self, blocks: nn.ModuleList, codebook: nn.Embedding, *, start: int, ratio: float, exits: bool,
        all_keys: bool = False, shared: tuple[int | str, ...] = (), in_full: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.blocks, self.codebook = blocks, codebook
        self.start, self.ratio, self.exits = start, ratio, exits
        self.all_keys, self.shared, self.in_full = all_keys, shared, in_full
        self.scale = -1
        self.maps: dict[int, Rows] = {}
        self.older: dict[int, Rows] = {}
        self.attention: list[Rows] = []
        self.kept: dict[int, list[list[int]]] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The model's blocks are wrapped while the context lasts."""
        with pytest.MonkeyPatch.context() as patch:
            for layer, block in enumerate(self.blocks):
                patch.setattr(block, "forward", self._wrapped(layer, block.forward))
            patch.setattr(self.codebook, "forward", self._zeroing(self.codebook.forward))
            patch.setattr(F, "scaled_dot_product_attention", self._spy(F.scaled_dot_product_attention))
            patch.setattr(torch, "softmax", self._spy_softmax(torch.softmax))
            yield

    def _spy(self, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def spy(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
            self.attention.append(entropy_of(query, key, named.get("scale")))
            return attend(query, key, value, *rest, **named)

        return spy

    def _spy_softmax(self, softmax: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def spy(scores: Tensor, dim: int) -> Tensor:
            p = softmax(scores, dim=dim)
            logs = torch.where(p > 0, p, 1.0)[0].double().log()
            self.attention.append((-(p[0].double() * logs).sum(-1)).mean(0).tolist())
            return p

        return spy

    def _zeroing(self, embed: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def zeroing(indices: Tensor) -> Tensor:
            vectors = embed(indices)
            if not self.exits or self.scale not in self.kept or indices.dim() != 2:
                return vectors
            lit = torch.zeros(indices.shape[1], dtype=torch.bool)
            lit[sorted(set.intersection(*map(set, self.kept[self.scale])))] = True
            return torch.where(lit[None, :, None], vectors, 0.0)

        return zeroing

    def _wrapped(self, layer: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            if layer == 0:
                self.scale += 1
                self.older, self.maps = self.maps, {}
            x = named["x"] if "x" in named else arguments[0]
            kept = self._choose(layer, x.shape[1])
            self.attention.clear()
            if kept is not None and layer in self.in_full:
                self.kept.setdefault(self.scale, []).append(list(range(x.shape[1])))
                kept = None
            if kept is None:
                result = forward(*arguments, **named)
                self.maps[layer] = self.attention[0]
                return result
            self.kept.setdefault(self.scale, []).append(kept)
            if not self.all_keys:
                arguments, named = self._gathered(arguments, named, kept)
            result = forward(*arguments, **named)
            self._lay_over(layer, x.shape[1], kept)
            y, *rest = result if isinstance(result, tuple) else (result,)
            restored = x.clone()
            restored[:, kept] = y[:, kept] if self.all_keys else y
            return (restored, *rest) if rest else restored

        return run

    def _choose(self, layer: int, tokens: int) -> list[int] | None:
        keep = max(2, round(self.ratio * tokens))
        if self.scale < self.start or keep >= tokens:
            return None
        if not self.exits:
            return lowest(nearest(self.older[layer], tokens), keep)
        if layer == 0:
            scores = [z_scores(values) for values in self.older.values()]
            mean = [statistics.fmean(column) for column in zip(*scores, strict=True)]
            self.choice = lowest(nearest(mean, tokens), keep)
        return self.choice

    def _gathered(
        self, arguments: tuple[Any, ...], named: dict[str, Any], kept: list[int]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def pick(name: int | str, value: Any) -> Any:
            if name in (0, "x"):
                return value[:, kept]
            if name not in self.shared:
                return value
            return tuple(part[kept] for part in value) if isinstance(value, tuple) else value[kept]

        return tuple(pick(i, v) for i, v in enumerate(arguments)), {n: pick(n, v) for n, v in named.items()}

    def _lay_over(self, layer: int, tokens: int, kept: list[int]) -> None:
        """The entropies of kept tokens over the older map."""
        fresh = self.attention[0]
        values = nearest(self.older[layer], tokens)
        for place, token in enumerate(kept):
            values[token] = fresh[token] if self.all_keys else fresh[place]
        self.maps[layer] = values


def shares(reference: Reference, tokens_of: dict[int, int], layers: int) -> dict[int, list[float]]:
    """Share of layers that computed each token, per pruned scale: what ``kept_tokens`` says."""
    result = {}
    for scale, choices in reference.kept.items():
        counts = [0] * tokens_of[scale]
        for token in (token for kept in choices for token in kept):
            counts[token] += 1
        result[scale] = [count / layers for count in counts]
    return result
