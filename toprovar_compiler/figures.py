"""Draws pictures: a sheet with titled columns and captioned rows, and which tokens were computed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from toprovar_compiler.errors import MissingDependencyError

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError as import_error:
    raise MissingDependencyError(
        "pictures require pillow, got none; install it with: pip install 'toprovar-compiler[examples]'"
    ) from import_error

_MARGIN = 12
_TEXT_SIZE = 15
_TEXT_HEIGHT = 26
_PAPER = (255, 255, 255)
_INK = (30, 30, 36)
_SHADE = (168, 24, 128)  # what a skipped token fades to: a colour that few pictures have much of
_SHADE_STRENGTH = 0.75

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Row:
    """One line of a sheet: a caption, and a picture per column (None leaves the place empty)."""

    caption: str
    pictures: tuple[Image.Image | None, ...]


def to_picture(image: Tensor) -> Image.Image:
    """An image [3, H, W] in [0, 1] as 8-bit RGB."""
    array = image.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array, "RGB")


def kept_overlay(picture: Image.Image, share: Tensor) -> Image.Image | None:
    """``picture`` with every token shaded by how little of it was computed.

    Args:
        picture: any size.
        share: [N] in [0, 1], the share of layers that computed each token, row-major over a square grid.

    Returns:
        A new picture; None if N is no square.
    """
    side = math.isqrt(share.numel())
    if side * side != share.numel():
        return None
    skipped = (1 - share.detach().float()).clamp(0, 1).mul(255 * _SHADE_STRENGTH).round().byte()
    mask = Image.fromarray(skipped.reshape(side, side).cpu().numpy(), "L").resize(
        picture.size, Image.Resampling.NEAREST
    )
    return Image.composite(Image.new("RGB", picture.size, _SHADE), picture, mask)


def sheet(titles: Sequence[str], rows: Sequence[Row], tile: int) -> Image.Image:
    """All rows under each other, each picture fitted into ``tile`` x ``tile`` pixels."""
    font = ImageFont.load_default(_TEXT_SIZE)
    heads = [_lines(title, tile, font) for title in titles]
    top = max([1, *map(len, heads)]) * _TEXT_HEIGHT + _MARGIN
    width = _MARGIN + len(titles) * (tile + _MARGIN)
    height = top + len(rows) * (_TEXT_HEIGHT + tile + _MARGIN)
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    for column, lines in enumerate(heads):
        for number, line in enumerate(lines):
            place = (_MARGIN + column * (tile + _MARGIN), _MARGIN + number * _TEXT_HEIGHT)
            draw.text(place, line, _INK, font)
    for row in rows:
        draw.text((_MARGIN, top), _fitted(row.caption, width - 2 * _MARGIN, font), _INK, font)
        for column, picture in enumerate(row.pictures):
            if picture is not None:
                small = picture.resize((tile, tile), Image.Resampling.LANCZOS)
                page.paste(small, (_MARGIN + column * (tile + _MARGIN), top + _TEXT_HEIGHT))
        top += _TEXT_HEIGHT + tile + _MARGIN
    return page


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG", optimize=True)


def _lines(text: str, width: int, font: _Font) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, ended behind punctuation where there is some."""
    lines = [""]
    for piece in re.findall(r"[^\[,=\s]*[\[,=\s]?", text):
        if font.getlength(lines[-1] + piece) > width and lines[-1]:
            lines.append("")
        for letter in piece:
            if font.getlength(lines[-1] + letter) > width and lines[-1]:
                lines.append("")
            lines[-1] += letter
    return lines


def _fitted(text: str, width: int, font: _Font) -> str:
    """``text``, cut with an ellipsis where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
