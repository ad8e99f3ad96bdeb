"""Where the batch and the tokens stand in a value of the token stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["token", "context", "packed"]


@dataclass(frozen=True)
class Axes:
    """Positions of the batch and of the token dimension in a stream value (of each, for a tuple).

    kind "packed": the tokens of all samples stand in one dimension, both positions are its.
    ``last``: the tokens stand behind the cache, where kind is "context"; else before it.
    """

    batch: int
    token: int
    kind: Kind
    last: bool = True
