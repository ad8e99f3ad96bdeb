"""Training batches: workers draw prompts and lay out scenes ahead of time, the device paints them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .atlas import Atlas, read_atlas
from .config import Config
from .prompt_sets import held_out_prompts, random_prompt
from .prompts import Prompt, encode
from .scenes import Scenes, make_scenes, render
from .vocabulary import Vocabulary

SEED_STRIDE = 1_000_003  # keeps the steps of neighbouring seeds apart
AHEAD = 3  # batches that each worker prepares in advance


class Batch(NamedTuple):
    """Prompts and their layouts, on the CPU."""

    ids: Tensor  # [B, T] int64
    scenes: Scenes


class Layouts(Dataset[Batch]):
    """One batch per step, which depends on the seed and the step alone, so that a run can resume.

    Args:
        atlas: names the sprites.
        seed: of the run.
        size_of: the batch size of a step.
    """

    def __init__(self, atlas: Atlas, seed: int, size_of: Callable[[int], int]) -> None:
        self.atlas, self.seed, self.size_of = atlas, seed, size_of
        self.vocabulary, self.length = Vocabulary(), Config.prompt_length

    def step_seed(self, step: int) -> int:
        """Seed of everything random in a step."""
        return self.seed * SEED_STRIDE + step

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(self.step_seed(step))
        return self.lay_out([random_prompt(rng) for _ in range(self.size_of(step))], self.step_seed(step))

    def lay_out(self, prompts: list[Prompt], seed: int) -> Batch:
        """The batch of given prompts."""
        return Batch(encode(prompts, self.vocabulary, self.length), make_scenes(prompts, self.atlas, seed))


class Feed:
    """Endless training pictures on a device.

    Args:
        device: paints.
        image_size: pixels a side.
        size_of: the batch size of a step.
        seed: of the run.
        workers: processes that lay out scenes; with 0 the caller does it.
    """

    def __init__(
        self,
        device: torch.device,
        image_size: int,
        size_of: Callable[[int], int],
        seed: int,
        workers: int = 0,
    ) -> None:
        atlas = read_atlas()
        self.layouts = Layouts(atlas, seed, size_of)
        self.sprites = atlas.sprites.to(device).float() / 255
        self.device, self.image_size, self.workers = device, image_size, workers

    def step_seed(self, step: int) -> int:
        """Seed of everything random in a step."""
        return self.layouts.step_seed(step)

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches of step ``first`` and all that follow, the same whatever the number of workers."""
        steps = itertools.count(first)
        if not self.workers:
            return (self.layouts[step] for step in steps)
        loader = DataLoader(
            self.layouts,
            batch_size=None,
            sampler=steps,
            num_workers=self.workers,
            prefetch_factor=AHEAD,
            multiprocessing_context="fork",  # workers share the atlas, and never touch the device
        )
        return iter(loader)

    def held_out(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Word ids ``[count, T]`` of prompts that training never shows, and their pictures."""
        batch = self.layouts.lay_out(held_out_prompts(count, seed), seed)
        return batch.ids.to(self.device), self.paint(batch.scenes)

    def paint(self, scenes: Scenes) -> Tensor:
        """Pictures ``[B, 3, image_size, image_size]`` in [0, 1] of layouts, on the device."""
        return render(scenes.to(self.device), self.sprites, self.image_size)
