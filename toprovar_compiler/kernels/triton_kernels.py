"""Flash Attention Entropy in plain Triton: the streaming kernel and the join of its splits.

Per query row the kernel keeps the running maximum m of the logits, l = sum e^(s - m) and
e = sum e^(s - m) (s - m); a larger maximum m' turns them into c l and c (e + (m - m') l) with c = e^(m - m').
At the end the entropy is log l - e / l (equation 2 of the paper; its Algorithm 2 lacks the (m - m') l term).
Logits are held in base 2. Masked logits are a large finite negative number, so that neither -inf - (-inf)
nor 0 * -inf can arise.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_BIAS = tl.constexpr(0)
BOOL_BIAS = tl.constexpr(1)
FLOAT_BIAS = tl.constexpr(2)

# Base-2 logit of a masked key. Its distance to any other logit, times any number of keys, is a float32.
MASKED = tl.constexpr(-1.0e30)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load(pointers, rows_inside, columns_inside, EVEN_ROWS: tl.constexpr, EVEN_COLUMNS: tl.constexpr):
    """A tile, zero outside; only the masks that are needed."""
    if EVEN_ROWS and EVEN_COLUMNS:
        return tl.load(pointers)
    if EVEN_ROWS:
        return tl.load(pointers, mask=columns_inside, other=0.0)
    if EVEN_COLUMNS:
        return tl.load(pointers, mask=rows_inside, other=0.0)
    return tl.load(pointers, mask=rows_inside & columns_inside, other=0.0)


@triton.jit
def _tile(
    total, maximum, mass, energy, q,
    k_base, v_base, bias_base, start, keys, queries,
    k_stride_n, k_stride_d, v_stride_n, v_stride_d, bias_stride_q, bias_stride_k,
    scale, rows,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BIAS: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_N keys; WHOLE tiles need no mask over the keys."""
    columns = start + tl.arange(0, BLOCK_N)
    inside = columns < keys
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    wide = columns.to(tl.int64)
    k = _load(
        k_base + wide[None, :] * k_stride_n + d[:, None] * k_stride_d,
        d[:, None] < D, inside[None, :], D == BLOCK_D, WHOLE,
    )  # fmt: skip
    logits = tl.dot(q, k, input_precision=PRECISION) * scale
    if BIAS != NO_BIAS:
        at = bias_base + rows[:, None].to(tl.int64) * bias_stride_q + wide[None, :] * bias_stride_k
        present = (rows[:, None] < queries) & inside[None, :]
        if BIAS == BOOL_BIAS:
            logits = tl.where(tl.load(at, mask=present, other=0) != 0, logits, MASKED)
        else:
            logits += tl.load(at, mask=present, other=0.0).to(tl.float32) * LOG2_E
    # Comparisons with NaN are false, so that a NaN stays where it is.
    logits = tl.where(logits < MASKED, MASKED, logits)
    if not WHOLE:
        logits = tl.where(inside[None, :], logits, MASKED)
    larger = tl.maximum(maximum, tl.max(logits, 1))
    shifted = logits - larger[:, None]
    weights = tl.math.exp2(shifted)
    decay = tl.math.exp2(maximum - larger)
    energy = decay * (energy + (maximum - larger) * mass) + tl.sum(weights * shifted, 1)
    mass = decay * mass + tl.sum(weights, 1)
    v = _load(
        v_base + wide[:, None] * v_stride_n + dv[None, :] * v_stride_d,
        inside[:, None], dv[None, :] < DV, WHOLE, DV == BLOCK_DV,
    )  # fmt: skip
    total = total * decay[:, None]
    total = tl.dot(weights.to(v.dtype), v, total, input_precision=PRECISION)
    return total, larger, mass, energy


@triton.jit
def _store_rows(
    out_base, entropy_base, total, maximum, mass, energy, rows, queries, keys,
    out_stride_n, out_stride_d, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Normalise and write [BLOCK_M, DV] rows and their entropies; fully masked rows are 0."""
    dead = maximum <= MASKED
    dv = tl.arange(0, BLOCK_DV)
    out = tl.where(dead[:, None], 0.0, total / mass[:, None])
    at = out_base + rows[:, None].to(tl.int64) * out_stride_n + dv[None, :] * out_stride_d
    inside = (rows[:, None] < queries) & (dv[None, :] < DV)
    tl.store(at, out.to(out_base.dtype.element_ty), mask=inside)
    entropy = LN_2 * (tl.math.log2(mass) - energy / mass)
    most = LN_2 * tl.math.log2(keys.to(tl.float32))
    entropy = tl.where(entropy < 0.0, 0.0, tl.where(entropy > most, most, entropy))
    tl.store(entropy_base + rows, tl.where(dead, 0.0, entropy), mask=rows < queries)


@triton.jit(do_not_specialize=["queries", "keys"])
def attention_entropy(
    Q, K, V, BIAS_AT, OUT, ENTROPY, PART, STATS,
    q_stride_b, q_stride_h, q_stride_n, q_stride_d,
    k_stride_b, k_stride_h, k_stride_n, k_stride_d,
    v_stride_b, v_stride_h, v_stride_n, v_stride_d,
    out_stride_b, out_stride_h, out_stride_n, out_stride_d,
    bias_stride_b, bias_stride_h, bias_stride_q, bias_stride_k,
    heads, group, queries, keys, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head over one of SPLITS parts of the keys.

    Q [B, H, Nq, D], K [B, H / group, Nk, D], V [B, H / group, Nk, DV], OUT [B, H, Nq, DV] by strides;
    ENTROPY [B * H, Nq] float32. With SPLITS > 1 PART [SPLITS, B * H, Nq, DV] and
    STATS [SPLITS, B * H, Nq, 3] (m, l, e) are written instead, float32.
    """
    blocks = tl.cdiv(queries, BLOCK_M)
    pid = tl.program_id(0)
    rows = (pid % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = (pid // blocks) % SPLITS
    head_of_all = (pid // (blocks * SPLITS)).to(tl.int64)
    b = head_of_all // heads
    h = head_of_all % heads
    d = tl.arange(0, BLOCK_D)
    q_at = Q + b * q_stride_b + h * q_stride_h
    q = tl.load(
        q_at + rows[:, None].to(tl.int64) * q_stride_n + d[None, :] * q_stride_d,
        mask=(rows[:, None] < queries) & (d[None, :] < D),
        other=0.0,
    )
    k_base = K + b * k_stride_b + (h // group) * k_stride_h
    v_base = V + b * v_stride_b + (h // group) * v_stride_h
    bias_base = BIAS_AT + b * bias_stride_b + h * bias_stride_h
    maximum = tl.full([BLOCK_M], MASKED, tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    energy = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    tiles_per_split = tl.cdiv(tl.cdiv(keys, BLOCK_N), SPLITS)
    first = split * tiles_per_split * BLOCK_N
    last = tl.minimum(first + tiles_per_split * BLOCK_N, keys)
    whole = tl.maximum(first, first + (last - first) // BLOCK_N * BLOCK_N)
    for start in tl.range(first, whole, BLOCK_N):
        total, maximum, mass, energy = _tile(
            total, maximum, mass, energy, q, k_base, v_base, bias_base, start, keys, queries,
            k_stride_n, k_stride_d, v_stride_n, v_stride_d, bias_stride_q, bias_stride_k, scale, rows,
            D, DV, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N, BIAS, True, PRECISION,
        )  # fmt: skip
    if whole < last:
        total, maximum, mass, energy = _tile(
            total, maximum, mass, energy, q, k_base, v_base, bias_base, whole, keys, queries,
            k_stride_n, k_stride_d, v_stride_n, v_stride_d, bias_stride_q, bias_stride_k, scale, rows,
            D, DV, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N, BIAS, False, PRECISION,
        )  # fmt: skip
    if SPLITS == 1:
        out_base = OUT + b * out_stride_b + h * out_stride_h
        _store_rows(
            out_base, ENTROPY + head_of_all * queries, total, maximum, mass, energy, rows, queries, keys,
            out_stride_n, out_stride_d, DV, BLOCK_DV,
        )  # fmt: skip
    else:
        count = (tl.num_programs(0) // (blocks * SPLITS)).to(tl.int64)
        row = (split * count + head_of_all) * queries + rows
        present = rows < queries
        tl.store(STATS + row * 3, maximum, mask=present)
        tl.store(STATS + row * 3 + 1, mass, mask=present)
        tl.store(STATS + row * 3 + 2, energy, mask=present)
        dv = tl.arange(0, BLOCK_DV)
        at = PART + row[:, None] * DV + dv[None, :]
        tl.store(at, total, mask=present[:, None] & (dv[None, :] < DV))


@triton.jit(do_not_specialize=["queries", "keys"])
def join_splits(
    PART, STATS, OUT, ENTROPY,
    out_stride_b, out_stride_h, out_stride_n, out_stride_d,
    heads, queries, keys,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Join the parts of `attention_entropy` in the order of the splits, so that a run repeats bitwise."""
    blocks = tl.cdiv(queries, BLOCK_M)
    pid = tl.program_id(0)
    rows = (pid % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    head_of_all = (pid // blocks).to(tl.int64)
    count = (tl.num_programs(0) // blocks).to(tl.int64)
    present = rows < queries
    dv = tl.arange(0, BLOCK_DV)
    maximum = tl.full([BLOCK_M], MASKED, tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    energy = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for split in tl.static_range(SPLITS):
        row = (split * count + head_of_all) * queries + rows
        m = tl.load(STATS + row * 3, mask=present, other=MASKED)
        mass_new = tl.load(STATS + row * 3 + 1, mask=present, other=1.0)
        energy_new = tl.load(STATS + row * 3 + 2, mask=present, other=0.0)
        part = tl.load(
            PART + row[:, None] * DV + dv[None, :],
            mask=present[:, None] & (dv[None, :] < DV),
            other=0.0,
        )
        larger = tl.maximum(maximum, m)
        old, new = tl.math.exp2(maximum - larger), tl.math.exp2(m - larger)
        energy = old * (energy + (maximum - larger) * mass) + new * (energy_new + (m - larger) * mass_new)
        mass = old * mass + new * mass_new
        total = old[:, None] * total + new[:, None] * part
        maximum = larger
    b = head_of_all // heads
    h = head_of_all % heads
    out_base = OUT + b * out_stride_b + h * out_stride_h
    _store_rows(
        out_base, ENTROPY + head_of_all * queries, total, maximum, mass, energy, rows, queries, keys,
        out_stride_n, out_stride_d, DV, BLOCK_DV,
    )  # fmt: skip
