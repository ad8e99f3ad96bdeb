"""Inputs of random programs, and what a pruned program must return: the untouched program on gathered tokens.

Nothing here looks at a graph. Each sample runs by itself through the eager program, with its own rows of
the stream and of every table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.property import tables
from tests.property.ops import Env
from tests.property.programs import HEAD_WIDTH, Block, Shape, body, program
from tests.property.tables import Sizes

BUFFER_ROWS = 40
MEMORY_ROWS = 5
_PER_SAMPLE = ("x", "cond", "text", "features", "cache_k", "cache_v")


@dataclass(frozen=True)
class Expected:
    """Outputs of the program with entropies: dense ones, or with only some tokens in the stream."""

    outputs: list[object]
    entropies: list[Tensor]


def make_inputs(shape: Shape, blocks: tuple[Block, ...], seed: int) -> dict[str, Tensor]:
    """Float64 inputs by name, in the order of the graph's placeholders."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int, fan: int = 1) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64) * fan**-0.5

    B, N, C, S = shape.batch, shape.tokens, shape.width, shape.cached
    inputs = {"x": normal(B, N, C), "cond": normal(B, 2 * C), "text": normal(B, shape.text, C)}
    for number in range(len(blocks) if S else 0):
        inputs[f"cache_k{number}"] = normal(B, shape.kv_heads, S, HEAD_WIDTH)
        inputs[f"cache_v{number}"] = normal(B, shape.kv_heads, S, HEAD_WIDTH)
    inputs |= {"rope": normal(N, 2 * C), "buffer": normal(BUFFER_ROWS, 2 * C), "features": normal(B, 4, 2)}
    inputs |= {"w0": normal(C, C, fan=C), "w1": normal(C, C, fan=C), "b0": normal(C)}
    inputs |= {"up": normal(2 * C, C, fan=C), "down": normal(C, 2 * C, fan=2 * C)}
    inputs |= {"wqkv": normal(3 * C, C, fan=C), "proj": normal(C, C, fan=C)}
    inputs |= {"w_text": normal(2 * C, C, fan=C), "memory": normal(MEMORY_ROWS, HEAD_WIDTH)}
    inputs |= {"conv": normal(C, C, 3, fan=3 * C), "square": normal(BUFFER_ROWS, BUFFER_ROWS, fan=4)}
    return inputs | {"row_bias": normal(B, shape.heads, 1, 1)}


def dynamic_axes(
    inputs: dict[str, Tensor], *, batch: bool = False, text: bool = False
) -> dict[str, tuple[int, ...]]:
    """Which sizes are symbolic: always those of tokens and caches, those of samples and text on demand."""
    axes: dict[str, tuple[int, ...]] = {"x": (1,), "rope": (0,)}
    axes |= {name: (2,) for name in inputs if name.startswith("cache")}
    if text:
        axes["text"] = (1,)
    if batch:
        axes |= {n: (0, *axes.get(n, ())) for n in inputs if _is_per_sample(n)}
    return axes


def dense(blocks: tuple[Block, ...], shape: Shape, inputs: dict[str, Tensor]) -> Expected:
    """The program on all tokens."""
    entropies: list[Tensor] = []
    outputs = program(blocks, shape, inputs, entropies)
    return Expected(list(outputs), entropies)


def pruned(
    blocks: tuple[Block, ...],
    shape: Shape,
    inputs: dict[str, Tensor],
    index: Tensor,
    base: Tensor,
    keys_of_all: bool,
) -> Expected:
    """The program on the tokens ``index`` [B, K]; the others become ``base`` [B, N, C].

    With ``keys_of_all`` the keys and values are those of all tokens, and so is every output that the
    dense program has for a kept token.
    """
    whole = dense(blocks, shape, inputs)
    if keys_of_all:
        return _rows_of(whole, index, base)
    cached = inputs["cache_k0"].shape[2] if "cache_k0" in inputs else 0
    sizes = Sizes(shape.batch, shape.heads, shape.tokens, cached)
    made = {table: tables.make(table, sizes, inputs) for block in blocks for table in block.tables()}
    samples, entropies = [], []
    for sample in range(shape.batch):
        mine = {n: t.narrow(0, sample, 1) if _is_per_sample(n) else t for n, t in inputs.items()}
        rows = {table: tables.take(t, table.layout, sample, index[sample]) for table, t in made.items()}
        x = mine["x"].index_select(1, index[sample])
        env = Env(mine, rows, shape.tokens, [])
        samples.append(body(blocks, shape, x, env))
        entropies.append(env.entropies or [])
    caches = 2 * sum(block.cache != "none" for block in blocks)
    outputs: list[object] = [torch.cat(parts) for parts in list(zip(*samples, strict=True))[: 1 + caches]]
    outputs[0] = _scattered(base, index, outputs[0])
    # What else is returned does not depend on the tokens: it stays as it was.
    return Expected(
        outputs + whole.outputs[1 + caches :], [torch.cat(p) for p in zip(*entropies, strict=True)]
    )


def _is_per_sample(name: str) -> bool:
    return name.rstrip("0123456789") in (*_PER_SAMPLE, "row_bias")


def _rows_of(whole: Expected, index: Tensor, base: Tensor) -> Expected:
    first = whole.outputs[0]
    assert isinstance(first, Tensor)
    rows = torch.arange(index.shape[0])[:, None]
    outputs = [_scattered(base, index, first[rows, index]), *whole.outputs[1:]]
    return Expected(outputs, [entropy.mT[rows, index].mT for entropy in whole.entropies])


def _scattered(base: Tensor, index: Tensor, kept: object) -> Tensor:
    assert isinstance(kept, Tensor)
    result = base.clone()
    result[torch.arange(index.shape[0])[:, None], index] = kept
    return result
