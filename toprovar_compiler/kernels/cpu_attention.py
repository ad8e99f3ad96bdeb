"""Attention with entropy on CPU, in torch operations, without the full matrix in memory.

(They run on any device; the Triton path hands float64 to them, which has no kernel there.)

The work is cut into tiles of some heads x some queries x some keys. A tile's logits live in a buffer that
is allocated once a call and is small enough for the caches; every step but the two matrix products works
in place on it.

Within a tile the fused softmax gives the weights p, whose maximum is 1/l, so that the entropy
`log l - e/l` of the running form (see reference.py) is `-log max p - sum p (s - m)`. That needs no pass for
l, and none for the division of the output. Tiles over different keys of the same queries are merged by
their log-sum-exp.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of one head's tile. 2 MiB in float32: larger tiles fall out of the caches, smaller ones pay
# more for the dispatch of each operation than they gain.
TILE_ELEMENTS = 512 * 1024
# More rows than this no longer make the matrix products faster.
MAX_ROWS = 256
# Fewer rows than this make them slow, so keys are cut instead.
MIN_ROWS = 64


class Tiling(NamedTuple):
    """How a call is cut: batch entries, key heads, queries and keys a tile."""

    batches: int
    heads: int
    queries: int
    keys: int


class _Tile(NamedTuple):
    """What one tile of keys gives for its queries: all `[G, R, ...]` with R rows and G heads."""

    out: Tensor
    maximum: Tensor
    log_sum: Tensor
    mean: Tensor


def attention_entropy_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and the entropy of its rows (equation 2 of the paper), exact up to rounding.

    q `[B, H, Nq, D]`, k `[B, Hkv, Nk, D]`, v `[B, Hkv, Nk, Dv]`, any strides; bias bool or floating,
    broadcastable to `[B, H, Nq, Nk]`, never expanded in memory. float16 and bfloat16 are computed in
    float32. Returns out `[B, H, Nq, Dv]`, the transpose of a contiguous `[B, Nq, H, Dv]`, in q's dtype and
    entropy `[B, H, Nq]` in float32 (float64 for float64). `tiling` is chosen from the shape if not given.
    Raises nothing; callers check the arguments (:func:`toprovar_compiler.kernels.checks.check_attention`).
    """
    batch, heads, queries, head_size = q.shape
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_empty((batch, queries, heads, v.shape[-1])).transpose(1, 2)
    entropy = q.new_empty((batch, heads, queries), dtype=compute)
    if out.shape[2] == 0 or k.shape[2] == 0 or entropy.numel() == 0:
        return out.zero_(), entropy.zero_()
    factor = 1.0 / math.sqrt(head_size) if scale is None else scale
    if tiling is None:
        tiling = choose_tiling(batch, k.shape[1], heads // k.shape[1], queries, k.shape[2])
    call = _Call(q, k, v, bias, factor, out, entropy, tiling, compute)
    call.run()
    if not call.clamp and bool(entropy.isnan().any()):
        # Without a floating bias a logit of -inf needs an infinite input, so only then is the pass that
        # guards against it paid for; rows that hold a real NaN come out as NaN again.
        call.clamp = True
        call.run()
    return out, entropy


def choose_tiling(batch: int, kv_heads: int, group: int, queries: int, keys: int) -> Tiling:
    """The default tiling of a call; a pure function of the shape and the number of threads."""
    rows_wanted = max(MIN_ROWS // group, 1)
    keys_tile = min(keys, max(TILE_ELEMENTS // (rows_wanted * group), 1))
    rows = max(min(TILE_ELEMENTS // (keys_tile * group), MAX_ROWS // group, queries), 1)
    blocks = math.ceil(queries / rows)
    rows = math.ceil(queries / blocks)
    tile = rows * group * keys_tile
    fitting = max(TILE_ELEMENTS // tile, 1) * torch.get_num_threads()
    heads_tile = max(h for h in range(1, kv_heads + 1) if kv_heads % h == 0 and h <= max(fitting, 1))
    batches = min(max(fitting // heads_tile, 1), batch) if heads_tile == kv_heads else 1
    return Tiling(batches, heads_tile, rows, keys_tile)


class _Call:
    """One call: its operands, its two tile buffers and the loops over tiles."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        scale: float,
        out: Tensor,
        entropy: Tensor,
        tiling: Tiling,
        compute: torch.dtype,
    ) -> None:
        self.q, self.k, self.v = q, k, v
        self.bias = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
        self.scale, self.out, self.entropy = scale, out, entropy
        self.tiling, self.compute = tiling, compute
        self.group = q.shape[1] // k.shape[1]
        self.clamp = bias is not None and bias.dtype != torch.bool
        # Stands for -inf: still finite after any finite maximum is subtracted, so that no -inf - (-inf)
        # and no 0 * -inf can arise. A row whose maximum is no larger is fully masked.
        self.masked = torch.finfo(compute).min / 2
        size = tiling.batches * tiling.heads * self.group * tiling.queries * tiling.keys
        self.logits = q.new_empty(size, dtype=compute)
        self.weights = q.new_empty(size, dtype=compute)

    def run(self) -> None:
        tiling, kv_heads = self.tiling, self.k.shape[1]
        for b in range(0, self.q.shape[0], tiling.batches):
            for h in range(0, kv_heads, tiling.heads):
                self._heads(slice(b, b + tiling.batches), h, min(h + tiling.heads, kv_heads))

    def _heads(self, batches: slice, first: int, last: int) -> None:
        """All queries of some heads; k and v are converted and laid out once here."""
        keys = self._matrix(self.k[batches, first:last]).transpose(1, 2)
        values = self._matrix(self.v[batches, first:last])
        heads = slice(first * self.group, last * self.group)
        for start in range(0, self.q.shape[2], self.tiling.queries):
            rows = slice(start, start + self.tiling.queries)
            block = self.q[batches, heads, rows]
            q = self._matrix(block.reshape(keys.shape[0], -1, block.shape[-1]))
            bias = None if self.bias is None else self.bias[batches, heads, rows]
            tile = self._all_keys(q, keys, values, block.shape[:3], bias)
            self._store(tile, self.out[batches, heads, rows], self.entropy[batches, heads, rows])

    def _all_keys(
        self, q: Tensor, keys: Tensor, values: Tensor, shape: torch.Size, bias: Tensor | None
    ) -> _Tile:
        """Walk the keys for `[G, R, D]` queries and merge what the tiles of keys give."""
        total: _Tile | None = None
        for start in range(0, keys.shape[2], self.tiling.keys):
            columns = slice(start, start + self.tiling.keys)
            part = self._tile(
                q,
                keys[:, :, columns],
                values[:, columns],
                shape,
                None if bias is None else bias[..., columns],
            )
            total = part if total is None else _merge(total, part)
        assert total is not None
        return total

    def _tile(self, q: Tensor, keys: Tensor, values: Tensor, shape: torch.Size, bias: Tensor | None) -> _Tile:
        full = (q.shape[0], q.shape[1], keys.shape[2])
        count = math.prod(full)
        logits = self.logits[:count].view(full)
        weights = self.weights[:count].view(full)
        torch.baddbmm(logits, q, keys, beta=0, alpha=self.scale, out=logits)
        if bias is not None:
            self._add_bias(logits.view(*shape, full[2]), bias)
        if self.clamp:
            logits.clamp_(min=self.masked)
        maximum = logits.amax(-1, keepdim=True)
        logits.sub_(maximum)
        torch.softmax(logits, -1, out=weights)
        mean = logits.mul_(weights).sum(-1, keepdim=True)
        log_sum = weights.amax(-1, keepdim=True).log_().neg_()
        return _Tile(torch.bmm(weights, values), maximum, log_sum, mean)

    def _add_bias(self, logits: Tensor, bias: Tensor) -> None:
        if bias.dtype == torch.bool:
            torch.where(bias, logits, logits.new_full((), self.masked), out=logits)
        else:
            logits.add_(bias)

    def _store(self, tile: _Tile, out: Tensor, entropy: Tensor) -> None:
        rows = tile.log_sum.sub_(tile.mean).squeeze(-1)
        # Rounding must not leave the range that entropy has: 0 for one-hot rows, log Nk for uniform ones.
        rows.clamp_(0.0, math.log(self.k.shape[2]))
        if self.bias is not None or self.clamp:
            dead = tile.maximum <= self.masked
            rows.masked_fill_(dead.squeeze(-1), 0.0)
            tile.out.masked_fill_(dead, 0.0)
        entropy.copy_(rows.view(entropy.shape))
        out.copy_(tile.out.view(out.shape))

    def _matrix(self, x: Tensor) -> Tensor:
        """`[..., N, D]` -> `[G, N, D]` in the dtype of the computation, copied only if it must be."""
        flat = x.to(self.compute).reshape(-1, *x.shape[-2:])
        rows, columns = flat.shape[-2:]
        row_stride, column_stride = flat.stride()[-2:]
        by_rows = column_stride == 1 and row_stride >= columns
        by_columns = row_stride == 1 and column_stride >= rows
        # Any other layout would be copied anew by each matrix product.
        return flat if by_rows or by_columns else flat.contiguous()


def _merge(a: _Tile, b: _Tile) -> _Tile:
    """Join two tiles of keys of the same queries; the maximum of both becomes the reference."""
    maximum = torch.maximum(a.maximum, b.maximum)
    lse_a, lse_b = a.maximum - maximum + a.log_sum, b.maximum - maximum + b.log_sum
    log_sum = torch.logaddexp(lse_a, lse_b)
    weight_a, weight_b = (lse_a - log_sum).exp_(), (lse_b - log_sum).exp_()
    mean = weight_a * (a.mean + (a.maximum - maximum)) + weight_b * (b.mean + (b.maximum - maximum))
    return _Tile(a.out.mul_(weight_a).add_(b.out.mul_(weight_b)), maximum, log_sum, mean)
