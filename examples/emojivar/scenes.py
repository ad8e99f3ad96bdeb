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
CANDIDATES = 24  # random layouts, of which the best is taken
SPREADS = 8  # times that overlapping objects of a layout are pushed apart
# smallest and largest object, by their number
LOOSE = {1: (84, 160), 2: (76, 120), 3: (70, 104), 4: (68, 98)}
CROWDED = {1: (160, 240), 2: (112, 128), 3: (98, 116), 4: (96, 114)}  # objects fill the picture
CROWDED_SHARE = 0.35
CLEARANCE = 0.92  # of the sum of two radii; below it they overlap
RELATION_DISTANCE = 0.8  # of the sum of two radii, along the relation's axis
RELATION_SKEW = 0.6  # most sideways shift, of the distance along the axis
RELATION_WEIGHT = 3.0
TEXTURE_CELLS = 16
TEXTURE_STRENGTH = (0.03, 0.08)  # weakest and strongest
NOISE, STRIPES, CHECKS = range(3)  # patterns of a textured background
PATTERN_SHARES = (0.5, 0.25, 0.25)
PERIODS = (24, 56)  # shortest and longest, of stripes and checks
SHARPNESS = 2.5  # of the edges of stripes and checks


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
    texture: Tensor  # [B, 1, 16, 16], noise
    pattern: Tensor  # [B] int64: NOISE, STRIPES or CHECKS
    period: Tensor  # [B], of stripes and checks
    strength: Tensor  # [B], of the texture

    def to(self, device: str | torch.device) -> Scenes:
        """The same on another device; to a GPU without waiting for the work queued there."""
        tensors = [getattr(self, field.name) for field in fields(self)]
        if torch.device(device).type == "cuda" and not tensors[0].is_cuda:
            tensors = [tensor.pin_memory() for tensor in tensors]
        return Scenes(*(tensor.to(device, non_blocking=True) for tensor in tensors))


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
        pattern=torch.multinomial(torch.tensor(PATTERN_SHARES), batch, replacement=True, generator=generator),
        period=_between(*PERIODS, torch.rand(batch, generator=generator)),
        strength=_between(*TEXTURE_STRENGTH, torch.rand(batch, generator=generator)),
    )


def _between(low: Tensor | float, high: Tensor | float, share: Tensor) -> Tensor:
    return low + (high - low) * share


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
    crowded = torch.rand(batch, generator=generator) < CROWDED_SHARE
    limits = torch.tensor([[(0, 0), *table.values()] for table in (LOOSE, CROWDED)], dtype=torch.float32)
    low, high = limits[crowded.long(), counts].unbind(1)
    sizes = _between(low[:, None], high[:, None], torch.rand(batch, SLOTS, generator=generator))
    radii = sizes[:, None] / 2  # [B, 1, 4]
    place = torch.rand(batch, CANDIDATES, SLOTS, 2, generator=generator)
    present = torch.arange(SLOTS) < counts[:, None]
    pairs = present[:, None, :, None] & present[:, None, None] & ~torch.eye(SLOTS, dtype=torch.bool)
    centres = _spread(_between(radii[..., None], CANVAS - radii[..., None], place), radii, pairs)
    centres = _turned(centres, relations)
    cost = (_overlap(centres, radii) * pairs).sum((-1, -2)) / 2  # [B, candidates]
    cost = cost + (relations >= 0)[:, None] * _relation_cost(centres, radii, relations.clamp(min=0))
    return sizes, centres[torch.arange(batch), cost.argmin(1)]


def _overlap(centres: Tensor, radii: Tensor) -> Tensor:
    """How much too close ``[B, candidates, 4, 4]`` the objects of each pair are."""
    apart = (centres[:, :, :, None] - centres[:, :, None]).abs().pow(3).sum(-1).pow(1 / 3)
    return (CLEARANCE * (radii[:, :, :, None] + radii[:, :, None]) - apart).clamp(min=0)


def _spread(centres: Tensor, radii: Tensor, pairs: Tensor) -> Tensor:
    """Centres ``[B, candidates, 4, 2]`` after pushing overlapping pairs apart, inside the picture."""
    for _ in range(SPREADS):
        away = F.normalize(centres[:, :, :, None] - centres[:, :, None], dim=-1)
        push = (_overlap(centres, radii) * pairs)[..., None] / 2 * away
        centres = (centres + push.sum(3)).clamp(min=radii[..., None], max=CANVAS - radii[..., None])
    return centres


def _turned(centres: Tensor, relations: Tensor) -> Tensor:
    """Centres ``[B, candidates, 4, 2]`` with x and y exchanged and mirrored as the relation needs it."""
    wanted = (relations >= 0)[:, None]
    upright, reverse = (relations >= 2)[:, None], (relations % 2 == 1)[:, None]
    x, y = (centres[:, :, 1] - centres[:, :, 0]).unbind(-1)
    exchanged = wanted & ((y.abs() > x.abs()) != upright)
    centres = torch.where(exchanged[..., None, None], centres.flip(-1), centres)
    forward = (centres[:, :, 1] - centres[:, :, 0]).gather(-1, upright.long().expand_as(x)[..., None])[..., 0]
    mirrored = wanted & ((forward < 0) != reverse)
    axis = torch.stack([~upright, upright], -1)  # [B, 1, 2], the one along the relation
    return torch.where((mirrored[..., None] & axis)[:, :, None], CANVAS - centres, centres)


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
    image = (image + _texture(scenes, x, y)[:, None]).clamp(0, 1)
    points = torch.stack([x, y], -1)
    for slot in range(SLOTS):
        centre, radius = scenes.centres[:, slot], scenes.sizes[:, slot] / 2
        grid = (points - centre[:, None, None]) / radius[:, None, None, None]
        layer = F.grid_sample(sprites[scenes.sprites[:, slot]], grid, align_corners=False)
        layer = layer * scenes.present[:, slot, None, None, None]
        image = image * (1 - layer[:, 3:]) + layer[:, :3]
    return image


def _texture(scenes: Scenes, x: Tensor, y: Tensor) -> Tensor:
    """What textured backgrounds add to their colour, ``[B, S, S]``, at ``x`` and ``y`` ``[S, S]``."""
    noise = F.interpolate(scenes.texture, size=tuple(x.shape), mode="bicubic")[:, 0]
    turn = 2 * math.pi / scenes.period[:, None, None]
    cos, sin = scenes.angle.cos()[:, None, None], scenes.angle.sin()[:, None, None]
    across, along = (turn * (x * cos + y * sin)).sin(), (turn * (y * cos - x * sin)).sin()
    pattern = scenes.pattern[:, None, None]
    waves = torch.tanh(SHARPNESS * torch.where(pattern == CHECKS, across * along, across))
    strength = (scenes.strength * scenes.textured)[:, None, None]
    return strength * torch.where(pattern == NOISE, noise, waves)
