"""The shapes that attention is measured at: B, H, Nq, Nk, D, and the models that they are the scales of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Shape = tuple[int, int, int, int, int]

# Two rows: one picture under classifier-free guidance.
ROWS = 2
_FLOPS_PER_PAIR = (
    4  # of a query, a key and an element of the head: a multiplication and an addition, in both products
)

# The embedded model's.
CPU_SHAPES: tuple[Shape, ...] = (
    (2, 4, 1024, 2130, 64),
    (2, 4, 576, 1106, 64),
    (2, 4, 307, 1400, 64),
    (2, 4, 256, 530, 64),
    (16, 4, 256, 530, 64),
)
# Of Infinity-2B (once pruned to a quarter of its queries), Infinity-8B, HART, and heads as VAR-d30 has them.
GPU_SHAPES: tuple[Shape, ...] = (
    (2, 16, 4096, 10521, 128),
    (2, 28, 4096, 10521, 128),
    (2, 16, 2304, 6425, 128),
    (2, 16, 1024, 2521, 128),
    (2, 16, 256, 521, 128),
    (2, 16, 1024, 10521, 128),
    (2, 24, 4096, 9451, 64),
    (2, 30, 1024, 2240, 64),
    (2, 30, 256, 680, 64),
)
# Small enough that a GPU is done before the next launch: what is left is the time of the host.
HOST_SHAPE: Shape = (2, 16, 256, 521, 128)


class Model(NamedTuple):
    """Heads, head size, and the sides of the square token maps, coarse to fine."""

    heads: int
    size: int
    sides: tuple[int, ...]


_INFINITY_SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
# VAR has as many heads as layers. HART puts the tokens of its text before these, which are left out here.
MODELS: Mapping[str, Model] = {
    "Infinity-2B": Model(16, 128, _INFINITY_SIDES),
    "Infinity-8B": Model(28, 128, _INFINITY_SIDES),
    "VAR-d36 512": Model(36, 64, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
    "HART": Model(24, 64, (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)),
}


def scales(model: Model) -> list[Shape]:
    """The self-attention of one layer at every scale: a scale's tokens over those and all before."""
    shapes, keys = [], 0
    for side in model.sides:
        keys += side * side
        shapes.append((ROWS, model.heads, side * side, keys, model.size))
    return shapes


def distinct_shapes() -> list[Shape]:
    """Every shape that is measured on a GPU, once: those of the models, then the rest of the single ones."""
    of_models = [shape for model in MODELS.values() for shape in scales(model)]
    return list(dict.fromkeys([*of_models, *GPU_SHAPES]))


def flops(shape: Shape) -> int:
    """Of attention's two matrix products, nothing else: 4 B H Nq Nk D."""
    batch, heads, queries, keys, size = shape
    return _FLOPS_PER_PAIR * batch * heads * queries * keys * size
