"""Shared positional tables of random programs: made from N inside the program, or passed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SOURCES = (
    "input",
    "prefix",
    "offset",
    "tail",
    "arange",
    "lookup",
    "constant",
    "chunk",
    "split",
    "unbind",
    "cumsum",
)
"""Where a table comes from; "chunk", "split" and "unbind" take one part of a tuple made from an arange."""

LAYOUTS = {
    "stream": ("nd", "1nd", "bnd", "n1"),
    "heads": ("nd", "1nd", "hnd", "11nd", "b1nd", "bhnd", "n1", "hnd~", "bhnd~"),
    "packed": ("nd", "11nd", "111nd", "b1nd", "3b1nd", "n1"),
    "tokens": ("n1d", "1n1d", "bn1d", "nhd", "n11"),
}
"""By the place where a table is used: [B,N,C], [B,H,N,D], [3,B,H,N,D], [B,N,H,D]; letters are dimensions.

With a "~" the tokens lie before the heads in memory.
"""


@dataclass(frozen=True)
class Table:
    """One table: its source, the layout of its dimensions (a letter or 1 for each), its width d."""

    source: str
    layout: str
    width: int


@dataclass(frozen=True)
class Sizes:
    """What a table may need to know: B, H, N and the length S of the cache."""

    batch: int
    heads: int
    tokens: int
    cached: int


def make(table: Table, sizes: Sizes, inputs: dict[str, Tensor]) -> Tensor:
    """The whole table, for all ``sizes.tokens`` positions."""
    rows = _rows(table, sizes, inputs)
    if "n1" in table.layout and "d" not in table.layout:
        rows = rows[:, :1]
    value = _arrange(rows, table.layout.rstrip("~"), sizes)
    if table.layout.endswith("~"):
        value = value.transpose(-3, -2).contiguous().transpose(-3, -2)
    return value


def take(value: Tensor, layout: str, sample: int, index: Tensor) -> Tensor:
    """What one sample sees of a table when it has the tokens ``index`` only."""
    value = value.index_select(layout.index("n"), index)
    return value.narrow(layout.index("b"), sample, 1) if "b" in layout else value


def _rows(table: Table, sizes: Sizes, inputs: dict[str, Tensor]) -> Tensor:
    """[N, width], float64."""
    n, buffer, width = sizes.tokens, inputs["buffer"], table.width
    position = torch.arange(n, dtype=torch.float64)[:, None]
    angle = position * 0.3 + torch.arange(width, dtype=torch.float64) * 0.7
    if table.source == "input":
        return inputs["rope"][:, :width]
    if table.source == "prefix":
        return buffer[:n, :width]
    if table.source == "offset":
        return buffer[sizes.cached : sizes.cached + n, :width]
    if table.source == "tail":
        return buffer[: sizes.cached + n][sizes.cached :, :width]
    if table.source == "lookup":
        return torch.nn.functional.embedding(torch.arange(n), buffer)[:, :width]
    if table.source == "chunk":
        return torch.cat([angle.cos(), angle.sin()], -1).chunk(2, -1)[1]
    if table.source == "split":
        return torch.cat([angle.cos(), angle.sin()], -1).split([width, width], -1)[0]
    if table.source == "unbind":
        return torch.stack([angle.cos(), angle.sin()]).unbind(0)[1]
    if table.source == "constant":
        return angle * torch.tensor([0.5, 2.0, 1.0, 0.7, 1.1, 0.2, 3.0, 0.9] * 2, dtype=torch.float64)[:width]
    if table.source == "cumsum":
        return torch.ones(n, width, dtype=torch.float64).cumsum(0) * 0.1
    return angle.cos()


def _arrange(rows: Tensor, layout: str, sizes: Sizes) -> Tensor:
    """``rows`` in ``layout``; each index of b, h and 3 gets values of its own."""
    value = rows
    for letter in reversed(layout[: layout.index("n")]):
        repeats = {"b": sizes.batch, "h": sizes.heads, "3": 3, "1": 1}[letter]
        value = torch.stack([value * (1 + 0.25 * i) for i in range(repeats)])
    after = layout[layout.index("n") + 1 :].rstrip("d")
    if after == "h":
        axis = layout.index("h")
        return torch.stack([value * (1 + 0.25 * i) for i in range(sizes.heads)], axis)
    width_is_there = "d" in layout
    for position, _ in enumerate(after if width_is_there else after[:-1]):
        value = value.unsqueeze(layout.index("n") + 1 + position)
    return value
