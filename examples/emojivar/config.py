"""Sizes of the model; stored beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any


@dataclass(frozen=True)
class Config:
    """Everything that decides the shape of a weight."""

    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    width: int = 256
    depth: int = 16
    heads: int = 4
    prompt_length: int = 16
    vocabulary_size: int = 94
    codes: int = 1024
    code_width: int = 16
    tokenizer_widths: tuple[int, int, int] = (64, 128, 160)

    @property
    def ends(self) -> tuple[int, ...]:
        """The index after each scale's last token."""
        return tuple(accumulate(side * side for side in self.patch_nums))

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Config:
        """The inverse of :meth:`to_json`; TypeError for unknown or missing names."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


SMOKE = Config(
    patch_nums=(1, 2, 4, 8),
    width=64,
    depth=2,
    heads=2,
    codes=64,
    code_width=8,
    tokenizer_widths=(16, 24, 32),
)
