"""Flash Attention Entropy in plain Triton: the streaming kernel and the join of its splits.

Per query row the kernel keeps a running maximum m of the logits, l = sum e^(s - m) and
e = sum e^(s - m) (s - m); a larger maximum m' turns them into c l and c (e + (m - m') l), c = e^(m - m').
At the end the entropy is log l - e / l (equation 2 of the paper; its Algorithm 2 lacks the (m - m') l term).
Logits are held in base 2. Masked logits are -inf; the running maximum starts at a large finite negative
number, so that -inf - (-inf) cannot arise, and a row that never rises above it is fully masked.
"""

# Triton reads the arguments of a kernel from its source; annotations other than tl.constexpr mean nothing.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

NO_BIAS = tl.constexpr(0)
BOOL_BIAS = tl.constexpr(1)
FLOAT_BIAS = tl.constexpr(2)

# Base-2 logit that stands for "no key yet". Finite, also times any number of keys.
LOWEST = tl.constexpr(-1.0e30)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load(pointers, rows_inside, columns_inside, EVEN_ROWS: tl.constexpr, EVEN_COLUMNS: tl.constexpr):
    """A tile, zero outside; only the masks that are needed."""
    if EVEN_ROWS and EVEN_COLUMNS:
        tile = tl.load(pointers)
    elif EVEN_ROWS:
        tile = tl.load(pointers, mask=columns_inside, other=0.0)
    elif EVEN_COLUMNS:
        tile = tl.load(pointers, mask=rows_inside, other=0.0)
    else:
        tile = tl.load(pointers, mask=rows_inside & columns_inside, other=0.0)
    return tile


@triton.jit
def _biased(logits, bias_at, rows_inside, inside, BIAS: tl.constexpr, WHOLE: tl.constexpr):
    """Base-2 logits with the bias added and everything that is not attended at -inf."""
    if BIAS != NO_BIAS:
        present = rows_inside[:, None] & inside[None, :]
        if BIAS == BOOL_BIAS:
            logits = tl.where(tl.load(bias_at, mask=present, other=0) != 0, logits, float("-inf"))
        else:
            logits += tl.load(bias_at, mask=present, other=0.0).to(tl.float32) * LOG2_E
    if not WHOLE:
        logits = tl.where(inside[None, :], logits, float("-inf"))
    return logits


@triton.jit
def _tile(
    total, maximum, mass, energy, q, k_at, v_at, bias_at, left, scale, rows_inside,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr, BIAS: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_N keys, of which `left` exist; WHOLE tiles need no mask over the keys."""
    inside = tl.arange(0, BLOCK_N) < left
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    k = _load(k_at, d[:, None] < D, inside[None, :], D == BLOCK_D, WHOLE)
    products = tl.dot(q, k, input_precision=PRECISION)
    if WHOLE and BIAS == NO_BIAS:
        # The scale is folded into one multiply-add; the host sees to it that it is not negative.
        larger = tl.maximum(maximum, tl.max(products, 1) * scale)
        shifted = products * scale - larger[:, None]
    else:
        logits = _biased(products * scale, bias_at, rows_inside, inside, BIAS, WHOLE)
        larger = tl.maximum(maximum, tl.max(logits, 1))
        shifted = logits - larger[:, None]
    weights = tl.math.exp2(shifted)
    decay = tl.math.exp2(maximum - larger)
    # 0 * -inf would be NaN. This maximum drops a NaN, but its weight is NaN all the same.
    terms = weights * tl.maximum(shifted, LOWEST)
    energy = decay * (energy + (maximum - larger) * mass) + tl.sum(terms, 1)
    mass = decay * mass + tl.sum(weights, 1)
    v = _load(v_at, inside[:, None], dv[None, :] < DV, WHOLE, DV == BLOCK_DV)
    total = tl.dot(weights.to(v.dtype), v, total * decay[:, None], input_precision=PRECISION)
    return total, larger, mass, energy


@triton.jit
def _store_rows(
    out_base, entropy_base, total, maximum, mass, energy, rows, queries, keys,
    out_stride_n, out_stride_d, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Normalise and write [BLOCK_M, DV] rows and their entropies; fully masked rows are 0, NaN rows NaN."""
    dead = (maximum <= LOWEST) & (mass == mass)
    dv = tl.arange(0, BLOCK_DV)
    out = tl.where(dead[:, None], 0.0, total / mass[:, None])
    at = out_base + rows[:, None].to(tl.int64) * out_stride_n + dv[None, :] * out_stride_d
    inside = (rows[:, None] < queries) & (dv[None, :] < DV)
    tl.store(at, out.to(out_base.dtype.element_ty), mask=inside)
    entropy = LN_2 * (tl.math.log2(mass) - energy / mass)
    # Rounding must not leave the range; comparisons with NaN are false, so that a NaN stays.
    most = LN_2 * tl.math.log2(keys.to(tl.float32))
    entropy = tl.where(entropy < 0.0, 0.0, tl.where(entropy > most, most, entropy))
    tl.store(entropy_base + rows, tl.where(dead, 0.0, entropy), mask=rows < queries)


@triton.jit(do_not_specialize=["heads", "group", "queries", "keys", "splits"])
def attention_entropy(
    Q, K, V, BIAS_AT, OUT, ENTROPY, PART, STATS,
    q_stride_b, q_stride_h, q_stride_n, q_stride_d,
    k_stride_b, k_stride_h, k_stride_n, k_stride_d,
    v_stride_b, v_stride_h, v_stride_n, v_stride_d,
    out_stride_b, out_stride_h, out_stride_n, out_stride_d,
    bias_stride_b, bias_stride_h, bias_stride_q, bias_stride_k,
    heads, group, queries, keys, splits, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head over one of `splits` parts of the keys.

    Q [B, H, Nq, D], K [B, H / group, Nk, D], V [B, H / group, Nk, DV], OUT [B, H, Nq, DV] by strides;
    ENTROPY [B * H, Nq] float32. With SPLIT, PART [splits, B * H, Nq, DV] and STATS
    [splits, B * H, Nq, 3] (m, l, e) are written instead, float32. `scale` is in base 2, not negative.
    """
    blocks = tl.cdiv(queries, BLOCK_M)
    pid = tl.program_id(0)
    rows = (pid % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_inside = rows < queries
    wide_rows = rows.to(tl.int64)
    split = (pid // blocks) % splits
    head_of_all = (pid // (blocks * splits)).to(tl.int64)
    b = head_of_all // heads
    h = head_of_all % heads
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    dv = tl.arange(0, BLOCK_DV).to(tl.int64)
    columns = tl.arange(0, BLOCK_N).to(tl.int64)
    q_at = Q + b * q_stride_b + h * q_stride_h + wide_rows[:, None] * q_stride_n + d[None, :] * q_stride_d
    q = _load(q_at, rows_inside[:, None], d[None, :] < D, False, D == BLOCK_D)

    parts = tl.cdiv(tl.cdiv(keys, BLOCK_N), splits) * BLOCK_N
    first = split * parts
    last = tl.minimum(first + parts, keys)
    whole = tl.maximum(first, first + (last - first) // BLOCK_N * BLOCK_N)
    # Offsets within a tile do not change; only the base moves along the keys.
    skipped = tl.full([], 0, tl.int64) + first
    step = tl.full([], BLOCK_N, tl.int64)
    k_at = K + b * k_stride_b + (h // group) * k_stride_h + skipped * k_stride_n
    v_at = V + b * v_stride_b + (h // group) * v_stride_h + skipped * v_stride_n
    bias_at = BIAS_AT + b * bias_stride_b + h * bias_stride_h + skipped * bias_stride_k
    k_offsets = columns[None, :] * k_stride_n + d[:, None] * k_stride_d
    v_offsets = columns[:, None] * v_stride_n + dv[None, :] * v_stride_d
    bias_offsets = wide_rows[:, None] * bias_stride_q + columns[None, :] * bias_stride_k

    maximum = tl.full([BLOCK_M], LOWEST, tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    energy = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for _ in tl.range(first, whole, BLOCK_N):
        total, maximum, mass, energy = _tile(
            total, maximum, mass, energy, q, k_at + k_offsets, v_at + v_offsets, bias_at + bias_offsets,
            BLOCK_N, scale, rows_inside, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, BIAS, True, PRECISION,
        )  # fmt: skip
        k_at += step * k_stride_n
        v_at += step * v_stride_n
        bias_at += step * bias_stride_k
    if whole < last:
        total, maximum, mass, energy = _tile(
            total, maximum, mass, energy, q, k_at + k_offsets, v_at + v_offsets, bias_at + bias_offsets,
            last - whole, scale, rows_inside, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, BIAS, False, PRECISION,
        )  # fmt: skip

    if SPLIT:
        count = (tl.num_programs(0) // (blocks * splits)).to(tl.int64)
        row = (split * count + head_of_all) * queries + rows
        tl.store(STATS + row * 3, maximum, mask=rows_inside)
        tl.store(STATS + row * 3 + 1, mass, mask=rows_inside)
        tl.store(STATS + row * 3 + 2, energy, mask=rows_inside)
        tl.store(
            PART + row[:, None] * DV + dv[None, :], total, mask=rows_inside[:, None] & (dv[None, :] < DV)
        )
    else:
        _store_rows(
            OUT + b * out_stride_b + h * out_stride_h, ENTROPY + head_of_all * queries,
            total, maximum, mass, energy, rows, queries, keys, out_stride_n, out_stride_d, DV, BLOCK_DV,
        )  # fmt: skip


@triton.jit(do_not_specialize=["heads", "queries", "keys", "splits"])
def join_splits(
    PART, STATS, OUT, ENTROPY,
    out_stride_b, out_stride_h, out_stride_n, out_stride_d,
    heads, queries, keys, splits,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Join the parts of `attention_entropy` in the order of the splits, so that a run repeats bitwise."""
    blocks = tl.cdiv(queries, BLOCK_M)
    pid = tl.program_id(0)
    rows = (pid % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    head_of_all = (pid // blocks).to(tl.int64)
    count = (tl.num_programs(0) // blocks).to(tl.int64)
    present = rows < queries
    dv = tl.arange(0, BLOCK_DV)
    inside = present[:, None] & (dv[None, :] < DV)
    maximum = tl.full([BLOCK_M], LOWEST, tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    energy = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for split in tl.range(0, splits):
        row = (split * count + head_of_all) * queries + rows
        m = tl.load(STATS + row * 3, mask=present, other=LOWEST)
        part_mass = tl.load(STATS + row * 3 + 1, mask=present, other=1.0)
        part_energy = tl.load(STATS + row * 3 + 2, mask=present, other=0.0)
        part = tl.load(PART + row[:, None] * DV + dv[None, :], mask=inside, other=0.0)
        larger = tl.maximum(maximum, m)
        old, new = tl.math.exp2(maximum - larger), tl.math.exp2(m - larger)
        energy = old * (energy + (maximum - larger) * mass) + new * (part_energy + (m - larger) * part_mass)
        mass = old * mass + new * part_mass
        total = old[:, None] * total + new[:, None] * part
        maximum = larger
    b = head_of_all // heads
    h = head_of_all % heads
    _store_rows(
        OUT + b * out_stride_b + h * out_stride_h, ENTROPY + head_of_all * queries,
        total, maximum, mass, energy, rows, queries, keys, out_stride_n, out_stride_d, DV, BLOCK_DV,
    )  # fmt: skip
