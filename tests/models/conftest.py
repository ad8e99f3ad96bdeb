"""A small model with random weights, where no layer starts as a no-op, and the released one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

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


@pytest.fixture
def small_model() -> Callable[[torch.dtype], EmojiVAR]:
    """Makes equal small models, in any dtype."""

    def make(dtype: torch.dtype = torch.float64) -> EmojiVAR:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = EmojiVAR(SMALL)
            for parameter in model.parameters():
                parameter.data += 0.15 * torch.randn_like(parameter)
        return model.to(dtype).eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def released() -> EmojiVAR:
    """The model in the repository, float32 on the CPU; tests leave it as it is."""
    return load()


@pytest.fixture(scope="session")
def atlas() -> Atlas:
    """The emoji in the repository."""
    return read_atlas()
