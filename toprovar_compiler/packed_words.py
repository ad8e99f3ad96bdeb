"""What packed prompts look like, and how many words they are padded to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CONTAINERS = (tuple, list)
"""Of packed prompts."""
_FEWEST_WORDS = 64
_LONGEST = 512
"""What text encoders cut their prompts at, mostly. One number for nearly all prompts, because Dynamo traces
anew where it differs."""


def is_packed(value: Any) -> bool:
    """Whether this looks like (words [T, C], offsets [samples + 1], longest)."""
    if type(value) not in CONTAINERS or len(value) != 3:
        return False
    words, offsets, longest = value
    return (
        isinstance(words, Tensor)
        and isinstance(offsets, Tensor)
        and type(longest) is int
        and words.dim() == 2
        and words.is_floating_point()
        and offsets.dim() == 1
        and offsets.dtype == torch.int32
        and 0 < longest <= len(words)
    )


def pad(words: Tensor, room: int, *, behind: float | Tensor = 0.0) -> Tensor:
    """The words [T, C] with ``room - T`` rows of this number behind them."""
    padded = words.new_empty((room, words.shape[1]))
    padded[: len(words)] = words
    padded[len(words) :] = behind
    return padded


def of_padded(value: Any, words: Tensor) -> Any:
    """The packed prompt ``value`` with its words padded to ``words``."""
    _, offsets, longest = value
    return type(value)((words, offsets, max(_LONGEST, _round_up(longest))))


def room_for(words: int) -> int:
    return max(_FEWEST_WORDS, _round_up(words))


def _round_up(number: int) -> int:
    """To a power of two."""
    return 1 << (number - 1).bit_length()
