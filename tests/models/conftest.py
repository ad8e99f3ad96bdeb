"""A small model with random weights, where no layer starts as a no-op, and the released one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from examples.emojivar import Config, EmojiVAR, load
from examples.emojivar.atlas import Atlas, read_atlas

# 1, 5, 21, 85 and 229 tokens: teacher forcing's masked and unmasked attention calls are both used
SMALL = Config(
    patch_nums=(1, 2, 4, 8, 12),
    width=32,
    depth=3,
    heads=2,
    codes=48,
    code_width=8,
    tokenizer_widths=(8, 8, 8),
)


class Recorder:
    """Codes and logits of a generation, scale by scale."""

    def __init__(self, model: EmojiVAR) -> None:
        self.codes: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.hooks = [
            model.tokenizer.codebook.register_forward_hook(lambda _m, args, _out: self.codes.append(args[0])),
            model.head.register_forward_hook(lambda _m, _args, out: self.logits.append(out)),
        ]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


@dataclass
class Painting:
    """Pictures of the released model, and the codes that they were made of."""

    prompts: list[str]
    images: Tensor
    codes: list[Tensor]


@pytest.fixture
def record() -> type[Recorder]:
    """A context manager that notes the codes and logits of a model's generation."""
    return Recorder


@pytest.fixture
def small_model() -> Callable[..., EmojiVAR]:
    """Makes equal small models, in any dtype and of any sizes."""

    def make(dtype: torch.dtype = torch.float64, **sizes: object) -> EmojiVAR:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = EmojiVAR(replace(SMALL, **sizes))
            for parameter in model.parameters():
                parameter.data += 0.15 * torch.randn_like(parameter)
        return model.to(dtype).eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def released() -> EmojiVAR:
    """The model in the repository, float32 on the CPU; tests leave it as it is."""
    return load()


@pytest.fixture(scope="session")
def painting(released: EmojiVAR) -> Painting:
    """Two pictures of the released model: one generation serves several tests."""
    prompts = ["a blue heart on a plain white background", "a pig on a plain navy background"]
    with Recorder(released) as recorder:
        images = released.generate(prompts, seed=0)
    return Painting(prompts, images, recorder.codes)


@pytest.fixture(scope="session")
def atlas() -> Atlas:
    """The emoji in the repository."""
    return read_atlas()
