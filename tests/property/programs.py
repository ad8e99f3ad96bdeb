"""Random blocks with planted attention, written out as data so that hypothesis can draw and shrink them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.property import tables
from tests.property.attentions import ATTEND
from tests.property.cross_attentions import CROSS
from tests.property.ops import OPS, Env
from tests.property.tables import Sizes, Table

HEAD_WIDTH = 4

PROJECTIONS = ("packed", "stacked", "chunk", "separate", "sequence", "permuted", "split")
HEAD_OPS = ("none", "norm", "scale", "rms", "table", "rope", "sequence_table")
CACHES = ("heads", "sequence", "none")
HARD_CACHES = ("values_reversed", "middle")
EXTRAS = ("none", "table", "free")
HARD_EXTRAS = ("count", "second", "features", "packed", "input", "keys_count", "key_mean")


@dataclass(frozen=True)
class Step:
    """One op of :data:`OPS` and the table that it reads, if any."""

    name: str
    table: Table | None = None


@dataclass(frozen=True)
class Block:
    """One attention block; every field names a case of a function below."""

    before: tuple[Step, ...] = ()
    projection: str = "packed"
    packed_table: Table | None = None
    head_op: str = "none"
    head_table: Table | None = None
    cache: str = "heads"
    attention: str = "sdpa"
    out_op: str = "none"
    out_table: Table | None = None
    after: tuple[Step, ...] = ()
    cross: str = "none"
    cross_table: Table | None = None
    extra: str = "none"

    def tables(self) -> list[Table]:
        steps = [step.table for step in (*self.before, *self.after)]
        return [
            t
            for t in (*steps, self.packed_table, self.head_table, self.out_table, self.cross_table)
            if t is not None
        ]


@dataclass(frozen=True)
class Shape:
    """Sizes of the inputs of a program."""

    batch: int = 2
    tokens: int = 6
    cached: int = 3
    heads: int = 2
    kv_heads: int = 2
    text: int = 3

    @property
    def width(self) -> int:
        return self.heads * HEAD_WIDTH


def program(
    blocks: tuple[Block, ...],
    shape: Shape,
    inputs: dict[str, Tensor],
    entropies: list[Tensor] | None = None,
) -> tuple[object, ...]:
    """The whole model: makes its tables for N positions, then runs the blocks."""
    x = inputs["x"]
    cached = inputs["cache_k0"].shape[2] if "cache_k0" in inputs else 0
    sizes = Sizes(shape.batch, shape.heads, x.shape[1], cached)
    made = {table: tables.make(table, sizes, inputs) for block in blocks for table in block.tables()}
    return body(blocks, shape, x, Env(inputs, made, x.shape[1], entropies))


def body(blocks: tuple[Block, ...], shape: Shape, x: Tensor, env: Env) -> tuple[object, ...]:
    """The blocks on tokens ``x``; returns the stream, then keys and values of each block, then extras."""
    caches: list[object] = []
    for number, block in enumerate(blocks):
        x, keys, values = _block(block, shape, x, env, number)
        if block.cache != "none":
            caches += [keys, values]
    return (x, *caches, *env.extras)


def _block(block: Block, shape: Shape, x: Tensor, env: Env, number: int) -> tuple[Tensor, Tensor, Tensor]:
    h = _chain(block.before, x, env)
    q, k, v = _project(block, shape, h, env)
    q = _head_op(block.head_op, block.head_table, q, env)
    k = _head_op(block.head_op, block.head_table, k, env)
    keys, values = _cache(block, k, v, env, number)
    out = _head_op(block.out_op, block.out_table, ATTEND[block.attention](q, keys, values, env), env)
    B, N = x.shape[0], x.shape[1]
    attended = out.transpose(1, 2).reshape(B, N, shape.width)
    x = x + F.linear(attended, env["proj"], env["b0"])
    x = _cross(block, x, shape, env)
    x = x + _chain(block.after, x, env) if block.after else x
    _extras(block, x, h, keys, env)
    return x, keys, values


def _chain(steps: tuple[Step, ...], x: Tensor, env: Env) -> Tensor:
    for step in steps:
        x = OPS[step.name].function(x, env, env.tables[step.table] if step.table is not None else None)
    return x


def _project(block: Block, shape: Shape, h: Tensor, env: Env) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, N, D], k and v [B, Hkv, N, D]."""
    B, N, H, D = h.shape[0], h.shape[1], shape.heads, HEAD_WIDTH

    def heads(t: Tensor) -> Tensor:
        return t.view(B, N, -1, D).transpose(1, 2)

    kv = shape.kv_heads * D
    weight = env["wqkv"]
    if shape.kv_heads != shape.heads or block.projection == "separate":
        q, k, v = weight.split([shape.width, shape.width, shape.width])
        return heads(F.linear(h, q)), heads(F.linear(h, k[:kv])), heads(F.linear(h, v[:kv]))
    packed = F.linear(h, weight)
    if block.extra == "packed":
        env.extras.append(packed)
    if block.projection == "chunk":
        one, two, three = (heads(part) for part in packed.chunk(3, -1))
        return one, two, three
    if block.projection == "split":
        one, two, three = packed.split([shape.width] * 3, dim=2)
        return heads(one), heads(two), heads(three)
    if block.projection == "sequence":
        one, two, three = packed.view(B, N, H, 3 * D).chunk(3, dim=-1)
        return one.transpose(1, 2), two.transpose(1, 2), three.transpose(1, 2)
    if block.projection == "stacked":
        parts = torch.stack([heads(part) for part in packed.chunk(3, -1)], 0)
    elif block.projection == "permuted":
        parts = packed.reshape(B, N, 3, H, D).transpose(1, 3).transpose(0, 2).transpose(1, 2)
    else:
        parts = packed.view(B, N, 3, H, D).permute(2, 0, 3, 1, 4)
    if block.packed_table is not None:
        parts = parts * env.tables[block.packed_table]
    one, two, three = parts.unbind(0)
    return one, two, three


def _head_op(name: str, which: Table | None, t: Tensor, env: Env) -> Tensor:
    """An op on [B, H, N, D]."""
    table = env.tables[which] if which is not None else None
    if name == "norm":
        return F.normalize(t, dim=-1) * 2.0
    if name == "scale":
        return t * env["cond"][:, : t.shape[-1]][:, None, None].sigmoid()
    if name == "rms":
        return F.rms_norm(t, t.shape[-1:], eps=1e-6)
    if table is None:
        return t
    if name == "rope":
        half = t.shape[-1] // 2
        angle = table[..., :half]
        one, two = t.chunk(2, -1)
        return torch.cat([one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos()], -1)
    if name == "sequence_table":
        return (t.transpose(1, 2) * table).transpose(1, 2)
    return table * t + 0.1 * table


def _cache(block: Block, k: Tensor, v: Tensor, env: Env, number: int) -> tuple[Tensor, Tensor]:
    if block.cache == "none" or f"cache_k{number}" not in env.inputs:
        return k, v
    past_k, past_v = env[f"cache_k{number}"], env[f"cache_v{number}"]
    if block.cache == "sequence":
        k = torch.cat([past_k.transpose(1, 2), k.transpose(1, 2)], 1).transpose(1, 2)
        return k, torch.cat([past_v.transpose(1, 2), v.transpose(1, 2)], dim=-3).transpose(1, 2)
    if block.cache == "values_reversed":
        return torch.cat([past_k, k], 2), torch.cat([v, past_v], 2)
    if block.cache == "middle":
        return torch.cat([past_k, k, past_k], 2), torch.cat([past_v, v, past_v], 2)
    return torch.cat([past_k, k], 2), torch.cat((past_v, v), dim=-2)


def _cross(block: Block, x: Tensor, shape: Shape, env: Env) -> Tensor:
    if block.cross == "none":
        return x
    table = env.tables[block.cross_table] if block.cross_table is not None else None
    q = F.linear(F.layer_norm(x, x.shape[-1:]), env["w1"]).unflatten(-1, (shape.heads, -1)).transpose(1, 2)
    return x + CROSS[block.cross](q, env, table).transpose(1, 2).flatten(2)


def _extras(block: Block, x: Tensor, h: Tensor, keys: Tensor, env: Env) -> None:
    """What the block returns beside the stream, the keys and the values."""
    number = x.shape[1]
    if block.extra == "table":
        env.extras += [env.tables[table] * 2 for table in block.tables()]
    elif block.extra == "free":
        env.extras.append(env["cond"].sum(-1))
    elif block.extra == "count":
        env.extras.append(number)
    elif block.extra == "keys_count":
        env.extras.append(keys.shape[2])
    elif block.extra == "second":
        env.extras.append(F.linear(x, env["up"]))
    elif block.extra == "features":
        env.extras.append(torch.cat([env["features"], x[..., :2]], 1))
    elif block.extra == "input":
        env.extras.append(env["x"].float())
    elif block.extra == "key_mean":
        env.extras.append(keys.mean(2))
