"""A small suite for ``toprovar evaluate``, real functions of pictures, and some that are broken."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.painters import small
from toprovar_compiler.evaluation.suite import Verdict

SIDE = 64
CELLS = 4
PROMPTS = ("a cat", "two apples", "a red mug", "a rocket", "a blue car", "three stars")


class BlobSuite:
    """Judges brightness: a picture of a prompt of two words shall be darker than grey, others brighter."""

    name = "blobs"

    def __init__(self, device: torch.device) -> None:
        self.fingerprint = "1"
        self.device = device

    def prompts(self, count: int, seed: int) -> list[str]:
        if count > len(PROMPTS):
            raise ValueError(f"requires at most {len(PROMPTS)} prompts, got {count}; ask for fewer")
        return [PROMPTS[(seed + place) % len(PROMPTS)] for place in range(count)]

    def true_images(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Noise, its mean as the prompt demands."""
        for prompt in prompts:
            if len(prompt.split()) < 2:
                raise ValueError(f"prompt {prompt!r} has no word that the suite knows; write 'a cat'")
        generator = torch.Generator().manual_seed(seed)
        level = torch.tensor([0.3 if self._dark(prompt) else 0.7 for prompt in prompts])
        noise = torch.rand(len(prompts), 3, SIDE, SIDE, generator=generator) - 0.5
        return (level[:, None, None, None] + 0.2 * noise).clamp(0, 1)

    def score(self, prompts: Sequence[str], images: Tensor) -> list[Verdict]:
        verdicts = []
        for prompt, image in zip(prompts, images, strict=True):
            dark = bool(image.mean() < 0.5)
            correct = dark == self._dark(prompt)
            verdicts.append(
                Verdict("dark" if self._dark(prompt) else "bright", correct, "" if correct else "brightness")
            )
        return verdicts

    def features(self, images: Tensor) -> Tensor:
        """Mean colours of a 4 x 4 grid, [B, 48]."""
        return torch.nn.functional.adaptive_avg_pool2d(images, CELLS).flatten(1)

    def foreground(self, images: Tensor) -> Tensor:
        """What is brighter than the picture's mean."""
        grey = images.mean(1)
        return grey > grey.mean((1, 2), keepdim=True)

    @staticmethod
    def _dark(prompt: str) -> bool:
        return hashlib.sha256(prompt.encode()).digest()[0] % 2 == 0


def load(device: torch.device) -> BlobSuite:
    return BlobSuite(device)


def stricter(device: torch.device) -> BlobSuite:
    suite = BlobSuite(device)
    suite.fingerprint = "2"
    return suite


class _Forgetful(BlobSuite):
    def score(self, prompts: Sequence[str], images: Tensor) -> list[Verdict]:
        return super().score(prompts, images)[:1]


def forgetful(device: torch.device) -> BlobSuite:
    return _Forgetful(device)


def no_suite(device: torch.device) -> dict[str, str]:
    return {"device": str(device)}


def other_weights(device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    model = small(device, dtype)
    for parameter in model.parameters():
        parameter.data += 0.1
    return model
