"""The evaluation suite of the embedded model: held-out prompts, true scenes, and the checker that judges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from .atlas import ASSETS, IMAGE_NAME, Atlas, read_atlas
from .checker import Checker, PromptScore, load_checker, score_pictures
from .checker.decode import LEAST_SCORE, MOST_OVERLAP
from .checker.geneval import Thresholds
from .prompt_sets import held_out_prompts
from .prompts import parse
from .scenes import make_scenes, render

VERSION = 1  # of the rules of scoring; to be raised with any change to them
SAMPLE = 48  # prompts that stand for the whole set in a fingerprint


class EmojiSuite:
    """Prompts, true pictures and a judge for EmojiVAR.

    Pictures are ``[B, 3, 256, 256]`` floating-point in [0, 1] on any device; what is said of one does not
    depend on the others of its batch.

    Args:
        checker: judges.
        atlas: of the true scenes.
    """

    name = "emojivar"

    def __init__(self, checker: Checker, atlas: Atlas) -> None:
        self.checker, self.atlas = checker, atlas
        self.sprites = atlas.sprites.float() / 255
        parts = {
            "version": VERSION,
            "weights": checker.fingerprint,
            "thresholds": asdict(Thresholds()),
            "detection": [LEAST_SCORE, MOST_OVERLAP],
            "sprites": hashlib.sha256((ASSETS / IMAGE_NAME).read_bytes()).hexdigest(),
            "prompts": self.prompts(SAMPLE, seed=0),
        }
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def prompts(self, count: int, seed: int) -> list[str]:
        """Different held-out prompts, the six tasks in turn; ValueError where there are not so many."""
        return [str(prompt) for prompt in held_out_prompts(count, seed)]

    def true_images(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Scenes ``[B, 3, 256, 256]`` float32 on the CPU, as a perfect model would paint them.

        Args:
            prompts: of the model's grammar; a background that they leave open is random.
            seed: picture ``i`` depends on prompt ``i`` and ``seed + i`` alone.

        Raises:
            PromptError: a prompt is outside the grammar.
        """
        pictures = [
            render(make_scenes([parse(prompt)], self.atlas, seed + index), self.sprites)
            for index, prompt in enumerate(prompts)
        ]
        return torch.cat(pictures)

    def score(self, prompts: Sequence[str], images: Tensor) -> list[PromptScore]:
        """Task, verdict and reason per picture, by GenEval's rules; see :func:`score_pictures`."""
        return score_pictures(prompts, images, self.checker)

    def features(self, images: Tensor) -> Tensor:
        """``[B, 96]`` float32, for the Frechet distance."""
        return self.checker.features(images)

    def foreground(self, images: Tensor) -> Tensor:
        """``[B, 256, 256]`` bool: the pixels of sprites."""
        return self.checker.foreground(images)


def load_suite(device: str | torch.device = "cpu") -> EmojiSuite:
    """The suite with the repository's checker; WeightsError where its weights are missing or damaged."""
    return EmojiSuite(load_checker(device), read_atlas())
