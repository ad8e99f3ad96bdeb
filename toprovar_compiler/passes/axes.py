"""Where the batch and the tokens stand in a value of the token stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["token", "context"]


@dataclass(frozen=True)
class Axes:
    """Positions of the batch and of the token dimension in a stream value (of each, for a tuple).

    ``last``: the tokens stand behind the cache, where kind is "context"; else before it.
    """

    batch: int
    token: int
    kind: Kind
    last: bool = True
