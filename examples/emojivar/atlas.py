"""The sheet of emoji that scenes are made of: `assets/atlas.png` and `assets/atlas.json`.

Rebuild it from the npm package with:

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python -m examples.emojivar.atlas package --out examples/emojivar/assets
"""

from __future__ import annotations

import argparse
import colorsys
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .images import from_pil, to_pil
from .vocabulary import COLOURABLE, HUES, KINDS

ASSETS = Path(__file__).parent / "assets"
IMAGE_NAME = "atlas.png"
TABLE_NAME = "atlas.json"
CELL = 144  # pixels a side of one sprite, with its margin
MARGIN = 2
COLUMNS = 12
OPAQUE = 0.05  # alpha above which a pixel counts for the bounding box
CODEPOINTS = tuple(  # in the order of KINDS
    """
    1f431 1f436 1f43c 1f438 1f437 1f981 1f98a 1f435 1f984 1f989 1f427 1f420 1f419 1f422 1f98b 1f41e 1f433
    1f40c 1f34e 1f34c 1f347 1f349 1f353 1f34d 1f34b 1f955 1f33d 1f344 1f355 1f354 1f369 1f9c1
    1f366 1f373 2615 1f697 1f68c 1f680 2708-fe0f 26f5 1f6b2 1f388 1f381 1f4d5 2602-fe0f 1f3a9 1f455
    1f451 1f511 1f514 1f3b8 23f0 1f4f7 1f4a1 26bd 2b50 2764-fe0f 1f33b 1f332 1f335 26c4 1f47b 1f916 1f3e0
    """.split()
)
HUE_ANGLES = {"red": 0.0, "green": 0.35, "blue": 0.60, "yellow": 0.145, "purple": 0.78}
LUMA = (0.35, 0.45, 0.20)


@dataclass(frozen=True)
class Atlas:
    """Sprites ``[S, 4, 144, 144]`` uint8 with premultiplied alpha, and which is which."""

    sprites: Tensor
    rows: dict[tuple[str, str], int]

    def row(self, kind: str, hue: str = "") -> int:
        """Row of a kind, in a hue or (empty) in its own colours; ValueError where there is none."""
        if (kind, hue) not in self.rows:
            raise ValueError(
                f"the atlas has no {hue or 'plain'} {kind}; colour one of: {', '.join(COLOURABLE)}"
            )
        return self.rows[kind, hue]


def read_atlas(folder: Path = ASSETS) -> Atlas:
    """The committed atlas; FileNotFoundError or ValueError where it is missing or does not fit its table."""
    table = json.loads((folder / TABLE_NAME).read_text(encoding="utf-8"))
    with Image.open(folder / IMAGE_NAME) as image:
        sheet = from_pil(image)
    cell, columns, names = table["cell"], table["columns"], table["sprites"]
    expected = (4, -(-len(names) // columns) * cell, columns * cell)
    if sheet.shape != expected:
        raise ValueError(
            f"{folder / IMAGE_NAME} requires RGBA of {expected}, got {tuple(sheet.shape)}; restore it"
        )
    cells = sheet.unflatten(2, (columns, cell)).unflatten(1, (-1, cell))
    sprites = cells.permute(1, 3, 0, 2, 4).flatten(0, 1)[: len(names)].contiguous()
    return Atlas(sprites, {(name["kind"], name["hue"]): row for row, name in enumerate(names)})


def cut_out(image: Image.Image) -> Tensor:
    """One emoji ``[4, 144, 144]`` uint8: cropped to a square, premultiplied, resized, with a clear margin."""
    rgba = from_pil(image.convert("RGBA")).float() / 255
    rows, columns = torch.where(rgba[3] > OPAQUE)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    side = max(bottom - top, right - left)
    x, y = int((left + right) / 2 - side / 2), int((top + bottom) / 2 - side / 2)
    rgba[:3] *= rgba[3:].clone()
    square = to_pil((rgba * 255).round().to(torch.uint8)).crop((x, y, x + side, y + side))
    # channel by channel: resizing RGBA as one would premultiply a second time
    inner = CELL - 2 * MARGIN
    channels = [from_pil(band.resize((inner, inner), Image.Resampling.LANCZOS)) for band in square.split()]
    sprite = torch.zeros(4, CELL, CELL, dtype=torch.uint8)
    sprite[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = torch.cat(channels)
    sprite[:3] = torch.minimum(sprite[:3], sprite[3:])
    return sprite


def tint(sprite: Tensor, hue: str) -> Tensor:
    """The sprite ``[4, H, W]`` with its saturated parts in another hue; greys, and so eyes, keep theirs."""
    pixels = sprite.double() / 255
    alpha = pixels[3:].clamp(min=1e-4)
    rgb = (pixels[:3] / alpha).clamp(0, 1)
    high, low = rgb.amax(0), rgb.amin(0)
    saturation = (high - low) / high.clamp(min=1e-4)
    luma = (rgb * torch.tensor(LUMA, dtype=torch.float64)[:, None, None]).sum(0)
    value = ((0.30 if hue == "yellow" else 0.18) + 0.85 * luma).clamp(0, 1)
    strength = (0.95 - 0.45 * (luma - 0.5).clamp(0, 1)).clamp(0, 1)
    pure = torch.tensor(colorsys.hsv_to_rgb(HUE_ANGLES[hue], 1, 1), dtype=torch.float64)
    tinted = value * (1 - strength * (1 - pure[:, None, None]))
    mix = ((saturation - 0.12) / 0.2).clamp(0, 1)
    out = sprite.clone()
    out[:3] = ((rgb * (1 - mix) + tinted * mix) * pixels[3:] * 255).clamp(0, 255).round().to(torch.uint8)
    return out


def build_atlas(package: Path, out: Path) -> None:
    """Write the sheet and its table from an unpacked npm package."""
    base = {}
    for kind, codepoint in zip(KINDS, CODEPOINTS, strict=True):
        with Image.open(package / "assets" / f"{codepoint}.webp") as image:
            base[kind] = cut_out(image)
    names = [(kind, "") for kind in KINDS] + [(kind, hue) for kind in COLOURABLE for hue in HUES]
    sprites = [tint(base[kind], hue) if hue else base[kind] for kind, hue in names]
    rows = [torch.cat(sprites[i : i + COLUMNS], dim=2) for i in range(0, len(sprites), COLUMNS)]
    out.mkdir(parents=True, exist_ok=True)
    to_pil(torch.cat(rows, dim=1)).save(out / IMAGE_NAME, optimize=True)
    manifest = json.loads((package / "package.json").read_text(encoding="utf-8"))
    table: dict[str, Any] = {
        "source": f"npm {manifest['name']} {manifest['version']}",
        "licence": f"{manifest['license']}: Fluent Emoji, (c) Microsoft Corporation; npm package by LobeHub",
        "homepage": manifest["homepage"],
        "alpha": "premultiplied",
        "cell": CELL,
        "columns": COLUMNS,
        "codepoints": dict(zip(KINDS, CODEPOINTS, strict=True)),
        "hue_angles": HUE_ANGLES,
        "sprites": [{"kind": kind, "hue": hue} for kind, hue in names],
    }
    (out / TABLE_NAME).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Build the atlas of emoji from the unpacked npm package.")
    parser.add_argument("package", type=Path, help="folder with package.json and assets/")
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    build_atlas(arguments.package, arguments.out)


if __name__ == "__main__":
    main()
