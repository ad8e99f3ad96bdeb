"""Pictures for prompts: a layout of emoji over a background, rendered at any size."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from .atlas import Atlas
from .prompt_sets import random_background
from .prompts import GRADIENT, Prompt
from .vocabulary import BACKGROUND_COLOURS, RELATIONS

CANVAS = 256.0  # layout units a side; pictures of any size show the same layout
SLOTS = 4  # most objects in a scene
CANDIDATES = 32  # random layouts, of which the best is taken
SIZES = {
    1: (88, 150),
    2: (76, 124),
    3: (70, 106),
    4: (70, 98),
}  # smallest and largest object, by their number
CLEARANCE = 0.92  # of the sum of two radii; below it they overlap
RELATION_DISTANCE = 0.8  # of the sum of two radii, along the relation's axis
RELATION_SKEW = 0.6  # most sideways shift, of the distance along the axis
RELATION_WEIGHT = 3.0
TEXTURE_CELLS = 16
TEXTURE_STRENGTH = 0.05


@dataclass
class Scenes:
    """A batch of layouts, in canvas units."""

    sprites: Tensor  # [B, 4] int64, rows of the atlas
    present: Tensor  # [B, 4] bool
    centres: Tensor  # [B, 4, 2], x and y
    sizes: Tensor  # [B, 4]
    colours: Tensor  # [B, 2, 3], the background's
    gradient: Tensor  # [B] bool
    textured: Tensor  # [B] bool
    angle: Tensor  # [B], of the gradient
    texture: Tensor  # [B, 1, 16, 16]

    def to(self, device: str | torch.device) -> Scenes:
        """The same on another device."""
        return Scenes(*(getattr(self, field.name).to(device) for field in fields(self)))


def make_scenes(prompts: Sequence[Prompt], atlas: Atlas, seed: int) -> Scenes:
    """Lay out one scene per prompt, on the CPU: equal for equal seeds whatever renders it.

    A prompt that leaves the background open gets a random one.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)
    backgrounds = [prompt.background or random_background(rng) for prompt in prompts]
    counts = torch.tensor([prompt.objects for prompt in prompts])
    relations = torch.tensor(
        [RELATIONS.index(prompt.relation) if prompt.relation else -1 for prompt in prompts]
    )
    sizes, centres = _layout(counts, relations, generator)
    colours = [[BACKGROUND_COLOURS[b.colours[0]], BACKGROUND_COLOURS[b.colours[-1]]] for b in backgrounds]
    batch = len(prompts)
    return Scenes(
        sprites=torch.tensor([_sprite_rows(prompt, atlas) for prompt in prompts]),
        present=torch.arange(SLOTS) < counts[:, None],
        centres=centres,
        sizes=sizes,
        colours=torch.tensor(colours),
        gradient=torch.tensor([b.style == GRADIENT for b in backgrounds]),
        textured=torch.tensor([b.style == "textured" for b in backgrounds]),
        angle=torch.rand(batch, generator=generator) * 2 * math.pi,
        texture=torch.randn(batch, 1, TEXTURE_CELLS, TEXTURE_CELLS, generator=generator),
    )


def _sprite_rows(prompt: Prompt, atlas: Atlas) -> list[int]:
    hues = prompt.hues or ("",) * len(prompt.kinds)
    rows = [atlas.row(kind, hue) for kind, hue in zip(prompt.kinds, hues, strict=True)]
    rows = rows * prompt.count
    return rows + [0] * (SLOTS - len(rows))


def _layout(counts: Tensor, relations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sizes ``[B, 4]`` and centres ``[B, 4, 2]``: of many random layouts, the one that collides least.

    Args:
        counts: ``[B]``, objects of each scene.
        relations: ``[B]``, index of the relation of the first to the second object, or -1.
        generator: on the CPU.
    """
    batch = len(counts)
    low, high = torch.tensor([(0, 0), *SIZES.values()], dtype=torch.float32)[counts].unbind(1)
    sizes = low[:, None] + (high - low)[:, None] * torch.rand(batch, SLOTS, generator=generator)
    radii = sizes[:, None] / 2  # [B, 1, 4]
    place = torch.rand(batch, CANDIDATES, SLOTS, 2, generator=generator)
    centres = radii[..., None] + (CANVAS - 2 * radii[..., None]) * place

    apart = (centres[:, :, :, None] - centres[:, :, None]).abs().pow(3).sum(-1).pow(1 / 3)
    overlap = (CLEARANCE * (radii[:, :, :, None] + radii[:, :, None]) - apart).clamp(min=0)
    present = torch.arange(SLOTS) < counts[:, None]
    pairs = (present[:, :, None] & present[:, None]).triu(diagonal=1)
    cost = (overlap * pairs[:, None]).sum((-1, -2))  # [B, candidates]

    cost = cost + (relations >= 0)[:, None] * _relation_cost(centres, radii, relations.clamp(min=0))
    best = cost.argmin(1)
    return sizes, centres[torch.arange(batch), best]


def _relation_cost(centres: Tensor, radii: Tensor, relations: Tensor) -> Tensor:
    """How far ``[B, candidates]`` the first object is from standing left of, right of, ... the second."""
    x, y = (centres[:, :, 1] - centres[:, :, 0]).unbind(-1)
    along = torch.stack([x, -x, y, -y])  # left, right, above, below
    forward = along[relations, torch.arange(len(relations))]
    sideways = torch.where((relations < 2)[:, None], y.abs(), x.abs())
    short = (RELATION_DISTANCE * (radii[:, :, 0] + radii[:, :, 1]) - forward).clamp(min=0)
    skew = (sideways - RELATION_SKEW * forward).clamp(min=0)
    return RELATION_WEIGHT * short + skew


@torch.no_grad()
def render(scenes: Scenes, sprites: Tensor, size: int = int(CANVAS)) -> Tensor:
    """Pictures ``[B, 3, size, size]`` float32 in [0, 1].

    Args:
        scenes: layouts, on the device that renders.
        sprites: the atlas's, on the same device, float32 in [0, 1] with premultiplied alpha.
        size: pixels a side.
    """
    pixel = (torch.arange(size, device=sprites.device) + 0.5) * (CANVAS / size)
    y, x = torch.meshgrid(pixel, pixel, indexing="ij")
    angle = scenes.angle[:, None, None]
    ramp = ((x - CANVAS / 2) * angle.cos() + (y - CANVAS / 2) * angle.sin()) / CANVAS + 0.5
    ramp = (ramp.clamp(0, 1) * scenes.gradient[:, None, None])[:, None]
    first, second = scenes.colours[..., None, None].unbind(1)
    image = first * (1 - ramp) + second * ramp
    texture = F.interpolate(scenes.texture, size=(size, size), mode="bicubic")
    image = (image + TEXTURE_STRENGTH * texture * scenes.textured[:, None, None, None]).clamp(0, 1)
    points = torch.stack([x, y], -1)
    for slot in range(SLOTS):
        centre, radius = scenes.centres[:, slot], scenes.sizes[:, slot] / 2
        grid = (points - centre[:, None, None]) / radius[:, None, None, None]
        layer = F.grid_sample(sprites[scenes.sprites[:, slot]], grid, align_corners=False)
        layer = layer * scenes.present[:, slot, None, None, None]
        image = image * (1 - layer[:, 3:]) + layer[:, :3]
    return image
