"""What is true of a scene, in the form that the network answers in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from examples.emojivar.atlas import Atlas
from examples.emojivar.prompts import GRADIENT
from examples.emojivar.scenes import CANVAS, Scenes, render
from examples.emojivar.vocabulary import BACKGROUND_COLOURS, HUES, KINDS, STYLES

from .net import MASK_STRIDE, STRIDE

OPAQUE = 0.5  # coverage from which a pixel belongs to a sprite
INSIDE = 1.0  # cells from an object's centre to the middle of a cell that must report the object
OUTSIDE = 2.0  # likewise, of a cell that must not; those between may do either


class Targets(NamedTuple):
    """Per cell, of the object nearest to it; ``G`` cells a side, ``M`` mask cells a side."""

    inside: Tensor  # [B, G, G] bool: an object must be reported here
    outside: Tensor  # [B, G, G] bool: none may
    offsets: Tensor  # [B, 2, G, G], in cells
    sizes: Tensor  # [B, 2, G, G], logarithms of cells
    kinds: Tensor  # [B, G, G] int64
    hues: Tensor  # [B, G, G] int64, 0 for own colours
    mask: Tensor  # [B, 1, M, M] bool
    styles: Tensor  # [B] int64
    colours: Tensor  # [B, 8] float, 1 for each that is there


@dataclass
class Labels:
    """What the rows of an atlas show, one entry per row."""

    kinds: Tensor  # [R] int64
    hues: Tensor  # [R] int64, 0 for own colours
    extents: Tensor  # [R, 2], width and height of what is opaque, as a share of the sprite's side
    weights: Tensor  # [R], so that kinds, and hues within a kind, are equally likely
    alpha: Tensor  # [R, 4, 144, 144], the alpha in every channel

    def to(self, device: str | torch.device) -> Labels:
        """The same on another device."""
        return Labels(*(value.to(device) for value in vars(self).values()))


def label(atlas: Atlas) -> Labels:
    """Read the labels off an atlas, on the CPU."""
    names = sorted(atlas.rows, key=lambda name: atlas.rows[name])
    kinds = torch.tensor([KINDS.index(kind) for kind, _ in names])
    alpha = atlas.sprites[:, 3:].float() / 255
    boxes = torch.tensor([_extent(a[0] > OPAQUE) for a in alpha]) / alpha.shape[-1]
    low, high = boxes.unflatten(1, (2, 2)).unbind(1)
    return Labels(
        kinds=kinds,
        hues=torch.tensor([1 + HUES.index(hue) if hue else 0 for _, hue in names]),
        extents=high - low,
        weights=1 / kinds.bincount()[kinds],
        alpha=alpha.expand(-1, 4, -1, -1),
    )


def _extent(opaque: Tensor) -> list[int]:
    """Left, top, right and bottom of the pixels that are set, in ``[H, W]``."""
    rows, columns = opaque.any(1).nonzero(), opaque.any(0).nonzero()
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


class Boxes(NamedTuple):
    """The objects of scenes, in pixels of the full-size picture; absent ones are without meaning."""

    centres: Tensor  # [B, 4, 2], x and y
    sizes: Tensor  # [B, 4, 2], width and height


def boxes_of(scenes: Scenes, labels: Labels) -> Boxes:
    """Tight boxes around what is opaque of each object, which the atlas has in the middle of its cell."""
    return Boxes(scenes.centres, scenes.sizes[..., None] * labels.extents[scenes.sprites])


def backgrounds_of(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Index of the style ``[B]``, and which of the named colours ``[B, 8]`` are there."""
    palette = scenes.colours.new_tensor(list(BACKGROUND_COLOURS.values()))
    nearest = (scenes.colours[:, :, None] - palette).abs().sum(-1).argmin(-1)  # [B, 2]
    present = torch.zeros(len(nearest), len(palette), device=nearest.device).scatter_(1, nearest, 1.0)
    gradient, textured = (STYLES.index(style) for style in (GRADIENT, "textured"))
    return scenes.gradient * gradient + scenes.textured * textured, present


def coverage(scenes: Scenes, labels: Labels, size: int) -> Tensor:
    """How much ``[B, 1, size, size]`` of each pixel the sprites hide of the background."""
    # sprites that are white wherever they are, on black
    black = replace(
        scenes,
        colours=torch.zeros_like(scenes.colours),
        textured=torch.zeros_like(scenes.textured),
        gradient=torch.zeros_like(scenes.gradient),
    )
    return render(black, labels.alpha, size)[:, :1]


@torch.no_grad()
def make_targets(scenes: Scenes, labels: Labels, image_size: int = int(CANVAS)) -> Targets:
    """The right answers for pictures of ``image_size`` pixels a side; all on one device."""
    scale = image_size / CANVAS / STRIDE  # cells per unit of the canvas
    side = image_size // STRIDE
    boxes = boxes_of(scenes, labels)
    centres, sizes = boxes.centres * scale, boxes.sizes * scale
    middle = torch.arange(side, device=centres.device) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    away = centres[:, :, :, None, None] - torch.stack([x, y])  # [B, 4, 2, G, G]
    distance = away.norm(dim=2).masked_fill(~scenes.present[:, :, None, None], torch.inf)
    distance, nearest = distance.min(1)  # [B, G, G]
    pick = nearest.flatten(1)
    rows = scenes.sprites.gather(1, pick).view_as(nearest)
    offsets = away.gather(1, nearest[:, None, None].expand(-1, 1, 2, -1, -1))[:, 0]
    logs = sizes.clamp(min=1e-3).log().gather(1, pick[..., None].expand(-1, -1, 2))
    styles, colours = backgrounds_of(scenes)
    return Targets(
        inside=distance <= INSIDE,
        outside=distance > OUTSIDE,
        offsets=offsets,
        sizes=logs.mT.unflatten(2, (side, side)),
        kinds=labels.kinds[rows],
        hues=labels.hues[rows],
        mask=coverage(scenes, labels, image_size // MASK_STRIDE) > OPAQUE,
        styles=styles,
        colours=colours,
    )


def sprite_names(labels: Labels, rows: Sequence[int]) -> list[tuple[str, str | None]]:
    """Kind and hue (None for own colours) of rows of the atlas."""
    hues = (None, *HUES)
    return [(KINDS[int(labels.kinds[row])], hues[int(labels.hues[row])]) for row in rows]
