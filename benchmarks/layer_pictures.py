"""Paints prompts under options of toprovar and compares with the dense pictures; finished ones are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import toprovar_compiler
from benchmarks.kept import Kept
from examples.emojivar import EmojiVAR
from toprovar_compiler.calibration.budgets import FlopsModel
from toprovar_compiler.evaluation.picture_metrics import compare
from toprovar_compiler.schedule import stated_schedule


@dataclass(frozen=True)
class Scores:
    """One set of options over some prompts.

    Attributes:
        ssim: of each picture to the dense one of the same seed.
        feature_error: of each, the distance of the features that are decoded from the dense ones, relative.
        flops: computed over due, of the transformer's blocks.
        fallbacks: reasons why something ran dense, with their counts.
    """

    ssim: list[float]
    feature_error: list[float]
    flops: float
    fallbacks: dict[str, int]


class Pictures:
    """Dense pictures of the prompts, and what others made of the same prompts and seeds.

    Args:
        model: the embedded model; it stays compiled.
        batch: pictures of one generation; the number of prompts must be a multiple.
        kept: what is finished, by batch: more prompts paint only what is new.
    """

    def __init__(self, model: EmojiVAR, prompts: Sequence[str], batch: int, kept: Kept) -> None:
        self._model, self._kept = model, kept
        self._batches = [list(prompts[i : i + batch]) for i in range(0, len(prompts), batch)]
        self._dense: dict[int, tuple[Tensor, Tensor]] = {}
        self._flops: list[int] = []  # of each scale, of one dense generation

    def scores(self, options: Mapping[str, Any]) -> Scores:
        """How pictures painted with these options are like the dense ones."""
        parts = [self._of_batch(number, options) for number in range(len(self._batches))]
        fallbacks: Counter[str] = Counter()
        for part in parts:
            fallbacks.update(part.fallbacks)
        return Scores(
            [ssim for part in parts for ssim in part.ssim],
            [error for part in parts for error in part.feature_error],
            fmean(part.flops for part in parts),
            dict(fallbacks),
        )

    def flops(self) -> FlopsModel:
        """What a generation takes, as counted in the first dense one."""

        def count() -> list[int]:
            self._dense_of(0)
            return self._flops

        counted = self._kept.get(["flops", self._batches[0]], count)
        return FlopsModel.of(stated_schedule(self._model) or (), dict(enumerate(counted)))

    def _of_batch(self, number: int, options: Mapping[str, Any]) -> Scores:
        name = [number, self._batches[number], options]
        return Scores(**self._kept.get(name, lambda: asdict(self._compare(number, options))))

    def _compare(self, number: int, options: Mapping[str, Any]) -> Scores:
        dense, dense_features = self._dense_of(number)
        pictures, features, work = self._paint(number, options)
        ssim = [record["ssim"] for record in compare(pictures, dense, foreground=None)]
        distance = (features - dense_features).flatten(1).norm(dim=1)
        error = (distance / dense_features.flatten(1).norm(dim=1)).tolist()
        return Scores(ssim, error, work["flops_computed"] / work["flops_total"], work["fallbacks"])

    def _dense_of(self, number: int) -> tuple[Tensor, Tensor]:
        if number not in self._dense:
            pictures, features, work = self._paint(number, {"policy": "dense"})
            self._dense[number] = pictures, features
            self._flops = [row["flops_total"] for row in work["per_scale"]]
        return self._dense[number]

    def _paint(self, number: int, options: Mapping[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """A batch's pictures [B, 3, H, W] float32, the features [B, C, G, G] they come from, the counts."""
        toprovar_compiler.compile(self._model, **options)
        texts = self._batches[number]
        with torch.inference_mode(), _features(self._model) as features:
            pictures = self._model.generate(texts, seed=number * len(self._batches[0]))
        counts = toprovar_compiler.summary(self._model).to_dict()
        return pictures.float().clamp(0, 1), features[0].float(), counts


@contextmanager
def _features(model: EmojiVAR) -> Iterator[list[Tensor]]:
    """Inside, what goes into the decoder is also put into the list."""
    decode, seen = model.tokenizer.decode, []

    def watched(features: Tensor) -> Tensor:
        seen.append(features)
        return decode(features)

    with mock.patch.object(model.tokenizer, "decode", watched):
        yield seen
