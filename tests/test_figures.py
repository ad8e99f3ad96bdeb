"""Figures: sizes, what is shaded, and text that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from toprovar_compiler.figures import Row, kept_overlay, save, sheet, to_picture


def test_to_picture_rounds_and_clamps() -> None:
    image = torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1).expand(3, 4, 6)
    picture = to_picture(image)
    assert picture.size == (6, 4)
    assert picture.getpixel((5, 3)) == (0, 128, 255)


def test_overlay_shades_skipped_tokens_only() -> None:
    picture = Image.new("RGB", (8, 8), (200, 200, 200))
    shaded = kept_overlay(picture, torch.tensor([1.0, 0.0, 0.5, 1.0]))
    assert shaded is not None
    assert shaded.getpixel((0, 0)) == shaded.getpixel((7, 7)) == (200, 200, 200)
    skipped, half = shaded.getpixel((7, 0)), shaded.getpixel((0, 7))
    assert skipped[1] < half[1] < 200


def test_overlay_needs_a_square_grid() -> None:
    assert kept_overlay(Image.new("RGB", (8, 8)), torch.ones(6)) is None


@pytest.mark.parametrize("rows", [1, 3])
def test_sheet_holds_every_row(rows: int) -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    page = sheet(["a", "b"], [Row("prompt " * 50, (red, None))] * rows, tile=32)
    assert page.getbbox() is not None
    colours = page.getcolors(page.width * page.height)
    assert colours is not None
    assert {colour: count for count, colour in colours}[255, 0, 0] == rows * 32 * 32


def test_titles_that_begin_alike_are_told_apart() -> None:
    names = [
        f"toprovar[start_scale=8,keep_ratio=0.2,entropy_source={source}]"
        for source in ("online", "calibrated")
    ]
    page = sheet(names, [], tile=100)
    columns = [page.crop((left, 0, left + 112, page.height)) for left in (6, 118)]
    assert columns[0].tobytes() != columns[1].tobytes()
    edges = [page.crop((left, 0, left + 12, page.height)).getcolors() for left in (0, 112, 224)]
    assert all(colours == [(12 * page.height, (255, 255, 255))] for colours in edges), (
        "text stays in its column"
    )


def test_a_short_title_takes_one_line() -> None:
    assert sheet(["dense"], [], tile=100).height < sheet(["dense[" + "a" * 50 + "]"], [], tile=100).height


def test_save_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.png"
    save(Image.new("RGB", (2, 3)), path)
    assert Image.open(path).size == (2, 3)
