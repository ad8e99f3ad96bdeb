"""How scales are called on the page."""

from __future__ import annotations

from toprovar_compiler.report.markup import Markup, element, markup
from toprovar_compiler.schedule import grid_of


def size_of(tokens: int) -> str:
    """The token grid in words."""
    grid = grid_of(tokens)
    return f"{tokens} tokens" if grid is None else f"{grid[0]} x {grid[1]} tokens"


def scale_title(scale: int, tokens: int) -> Markup:
    """The title of a scale's row: its number, and its size below."""
    return markup(scale, " ", element("small", size_of(tokens)))
