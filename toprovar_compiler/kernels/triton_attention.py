"""Launches the Triton kernels: picks tile sizes and splits, and hands over strides."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toprovar_compiler.kernels import triton_kernels as kernels
from toprovar_compiler.kernels.checks import check_attention
from toprovar_compiler.kernels.cpu_attention import attention_entropy_cpu
from toprovar_compiler.kernels.direct_launch import LOG2_E, Attended, Launched
from toprovar_compiler.kernels.hopper_attention import attend_on_hopper
from toprovar_compiler.kernels.repeats import kind_of, repeat
from toprovar_compiler.kernels.split_keys import join, make_parts, padded

# Below this many programs a GPU of the H100's size stands half empty, and the keys are split.
PROGRAMS_WANTED = 128
MOST_SPLITS = 16


class Tiles(NamedTuple):
    """Queries and keys a tile, warps a program, stages of the key pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


_ANY = 1 << 31
# (largest padded head size, most queries) -> tiles for 16-bit inputs. None spills registers on sm_90;
# `python -m benchmarks.attention_tiles` times the neighbours of these.
_TILES: tuple[tuple[int, int, Tiles], ...] = (
    (64, 16, Tiles(16, 64, 4, 3)),
    (64, 32, Tiles(32, 64, 4, 3)),
    (64, 128, Tiles(64, 64, 4, 3)),
    (64, _ANY, Tiles(128, 64, 8, 3)),
    (128, 16, Tiles(16, 64, 4, 3)),
    (128, 32, Tiles(32, 64, 4, 3)),
    (128, 128, Tiles(64, 64, 4, 3)),
    (128, _ANY, Tiles(128, 64, 8, 3)),
    (256, 16, Tiles(16, 32, 4, 2)),
    (256, _ANY, Tiles(64, 32, 8, 2)),
)
# Exact float32 products run on the plain cores, whose operands fill the registers: small tiles.
_FLOAT32_TILES = ((64, Tiles(32, 32, 8, 1)), (256, Tiles(16, 32, 4, 2)))


def choose_tiles(head_size: int, queries: int, dtype: torch.dtype) -> Tiles:
    """Tile sizes for a padded head size; a pure function, so that no call waits for a search."""
    if dtype == torch.float32:
        return next(tiles for most, tiles in _FLOAT32_TILES if head_size <= most)
    return next(tiles for size, most, tiles in _TILES if head_size <= size and queries <= most)


def choose_splits(programs: int, key_tiles: int) -> int:
    """Parts that the keys are cut into (a power of two): enough programs, and two tiles a part at least."""
    splits = 1
    while splits < MOST_SPLITS and programs * splits < PROGRAMS_WANTED and key_tiles >= 4 * splits:
        splits *= 2
    return splits


def attention_entropy_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    tiles: Tiles | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and the entropy of its rows (equation 2 of the paper) in one pass over the keys.

    q `[B, H, Nq, D]`, k `[B, Hkv, Nk, D]`, v `[B, Hkv, Nk, Dv]`, any strides; bias bool or floating,
    broadcastable to `[B, H, Nq, Nk]`. Returns out `[B, H, Nq, Dv]`, the transpose of a contiguous
    `[B, Nq, H, Dv]`, in q's dtype, and entropy `[B, H, Nq]` in float32. float64, which only checks ask
    for, runs as torch operations on tiles. `tiles` and `splits` (parts of the keys) are chosen from the
    shape if not given. Calls of a kind that was seen before take a short way (:mod:`.repeats`).

    Raises:
        KernelInputError, GradientNotSupportedError: see :func:`toprovar_compiler.kernels.checks.check_attention`.
    """
    if q.is_cuda and q.get_device() != torch.cuda.current_device():
        # Triton launches on the current device, whatever device its arguments are on.
        with torch.cuda.device(q.device):
            return attention_entropy_triton(q, k, v, bias, scale, tiles, splits)
    kind = kind_of(q, k, v, bias, tiles, splits)
    done = None if kind.again is None else kind.again(q, k, v, bias, scale)
    if done is not None:
        return done
    check_attention(q, k, v, bias, scale)
    if scale is not None and scale < 0:
        return attention_entropy_triton(q.neg(), k, v, bias, -scale, tiles, splits)
    if q.dtype == torch.float64:
        return attention_entropy_cpu(q, k, v, bias, scale)
    batch, heads, queries, head_size = q.shape
    keys, value_size = k.shape[2], v.shape[3]
    out = q.new_empty((batch, queries, heads, value_size)).transpose(1, 2)
    entropy = q.new_empty((batch, heads, queries), dtype=torch.float32)
    if entropy.numel() == 0 or keys == 0:
        return out.zero_(), entropy.zero_()
    factor = 1.0 / math.sqrt(head_size) if scale is None else scale
    attended = None
    if tiles is None and splits is None:
        attended = attend_on_hopper(q, k, v, bias, out, entropy, factor)
    if attended is None:
        attended = _attend(q, k, v, bias, out, entropy, factor, tiles, splits)
    kind.again = repeat(attended, q, out, entropy)
    return out, entropy


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    entropy: Tensor,
    scale: float,
    tiles: Tiles | None,
    splits: int | None,
) -> Attended:
    """Fill out and entropy by the portable kernel; the scale is not negative."""
    batch, heads, queries, head_size = q.shape
    keys, value_size = k.shape[2], v.shape[3]
    block_d, block_dv = padded(head_size), padded(value_size)
    if tiles is None:
        tiles = choose_tiles(max(block_d, block_dv), queries, q.dtype)
    blocks = math.ceil(queries / tiles.queries) * batch * heads
    if splits is None:
        splits = choose_splits(blocks, math.ceil(keys / tiles.keys))
    parts = make_parts(splits, entropy, value_size)
    mask, mask_strides, mask_kind = _bias(bias, q, keys)
    numbers: tuple[Any, ...] = (*q.stride(), *k.stride(), *v.stride(), *out.stride(), *mask_strides)
    numbers += (heads, heads // k.shape[1], queries, keys, splits, scale * LOG2_E)
    scale_at = len(numbers) - 1
    numbers += (head_size, value_size, block_d, block_dv, tiles.queries, tiles.keys, splits > 1, mask_kind)
    numbers += ("ieee" if q.dtype == torch.float32 else "tf32",)
    compiled = kernels.attention_entropy[(blocks * splits,)](
        q, k, v, mask, out, entropy, *parts, *numbers, num_warps=tiles.warps, num_stages=tiles.stages
    )
    joined = join(parts, splits, out, entropy, keys) if splits > 1 else None
    return Attended(Launched(compiled, blocks * splits, numbers), scale_at, splits, joined)


def _bias(bias: Tensor | None, q: Tensor, keys: int) -> tuple[Tensor, tuple[int, ...], Any]:
    """Bias, its strides over [B, H, Nq, Nk] (0 where it broadcasts), and its kind."""
    if bias is None:
        return q, (0, 0, 0, 0), kernels.NO_BIAS.value
    full = bias.expand(*q.shape[:3], keys)
    if bias.dtype == torch.bool:
        return full.view(torch.uint8), full.stride(), kernels.BOOL_BIAS.value
    return full, full.stride(), kernels.FLOAT_BIAS.value
