"""Flash Attention Entropy for Hopper GPUs (sm_90) in Gluon: TMA, wgmma, one role a warpgroup.

One program serves 64 queries of one head in each of its consumer warpgroups; one more warp, the producer,
keeps a ring of key and value tiles filled. Two passes share their code (:mod:`.hopper_tiles`):

- The fast pass takes a row's maximum over the first tile as its reference for good, so that no later tile
  needs a maximum, a rescaling, or sums across lanes. With m that reference, l = sum e^(s - m) and
  e = sum e^(s - m) (s - m), the entropy is log l - e / l whatever m is, as long as nothing overflows. Rows
  where l reaches LIMIT, and rows where anything is not a finite number, are left unwritten. Rounding of
  log l - e / l grows with log l: by estimate, not measured, to 1e-5 at LIMIT; the exact pass has 1e-7.
- The exact pass keeps a running maximum, as `triton_kernels` does, and serves every row. Programs whose fast
  pass left a row out run it over all keys, and write those rows only: what a row gives never depends on its
  neighbours. float16 weights would overflow at 11 nats above the reference, so it is float16's only pass.
"""

# Gluon reads the arguments of a kernel from its source; annotations other than gl.constexpr mean nothing.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from toprovar_compiler.kernels.hopper_tiles import (
    GIVE_TURN,
    LOWEST,
    ROWS,
    WAIT_TURN,
    attend,
    next_slot,
    turn,
    vote,
)

# A row's sum of weights in the fast pass. Far enough from 2^128 for the sums of weights times logits.
LIMIT = gl.constexpr(2.0**100)
LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def _place(program, blocks, splits, SPLIT: gl.constexpr):
    """Which head, which block of queries, and which part of the keys a program serves."""
    if SPLIT:
        return program // (blocks * splits), program % blocks, (program // blocks) % splits
    return program // blocks, program % blocks, gl.to_tensor(0)


@gluon.jit
def _part(keys, split, splits, SPLIT: gl.constexpr):
    """The first key of a part, and how many it has; the host sees to it that they fill a tile."""
    if SPLIT:
        first = keys * split // splits
        return first, keys * (split + 1) // splits - first
    return gl.to_tensor(0), keys


@gluon.jit
def _store(
    out, reference, mass, energy, wanted, program, args,
    WARPGROUP: gl.constexpr, WARPGROUPS: gl.constexpr, SPLIT: gl.constexpr, WITH_ENTROPY: gl.constexpr,
):  # fmt: skip
    """Write the `wanted` ones of 64 rows, or with SPLIT what :func:`.triton_kernels.join_splits` makes them of."""
    OUT, ENTROPY, PART, STATS, heads, queries, blocks, splits, most = args
    head_of_all, block, split = _place(program, blocks, splits, SPLIT)
    row = (block * WARPGROUPS + WARPGROUP) * ROWS
    if SPLIT:
        count = (gl.num_programs(0) // (blocks * splits)).to(gl.int64)
        first = (split * count + head_of_all) * queries + row
        _store_part(out, reference, mass, energy, wanted, PART, STATS, first, queries - row)
    else:
        entropy_at = ENTROPY + head_of_all.to(gl.int64) * queries + row
        first = ((head_of_all // heads).to(gl.int64) * queries + row) * heads + head_of_all % heads
        _store_rows(
            out, reference, mass, energy, wanted, OUT + first * out.shape[1], entropy_at, heads, queries - row,
            most, WITH_ENTROPY,
        )  # fmt: skip


@gluon.jit
def _store_part(out, reference, mass, energy, wanted, PART, STATS, first, present):
    """The `wanted` ones of the first `present` rows, unnormalised, and their m, l and e."""
    D: gl.constexpr = out.shape[1]
    line = gl.arange(0, ROWS, layout=reference.type.layout)
    inside = wanted & (line < present)
    stats = STATS + (first + line) * 3
    gl.store(stats, reference, mask=inside)
    gl.store(stats + 1, mass, mask=inside)
    gl.store(stats + 2, energy, mask=inside)
    by_row: gl.constexpr = gl.SliceLayout(1, out.type.layout)
    inside = gl.convert_layout(inside.to(gl.int32), by_row, assert_trivial=True) != 0
    line = gl.arange(0, ROWS, layout=by_row)
    column = gl.arange(0, D, layout=gl.SliceLayout(0, out.type.layout))
    gl.store(PART + first * D + (line * D)[:, None] + column[None, :], out, mask=inside[:, None])


@gluon.jit
def _store_rows(
    out, reference, mass, energy, wanted, out_at, entropy_at, heads, present, most, WITH_ENTROPY: gl.constexpr
):
    """Normalise and write the `wanted` ones of the first `present` rows; fully masked rows are 0, NaN rows NaN."""
    D: gl.constexpr = out.shape[1]
    line = gl.arange(0, ROWS, layout=reference.type.layout)
    dead = (reference <= LOWEST) & (mass == mass)
    if WITH_ENTROPY:
        entropy = LN_2 * (gl.log2(mass) - energy / mass)
        # Rounding must not leave the range; comparisons with NaN are false, so that a NaN stays.
        entropy = gl.where(entropy < 0.0, 0.0, gl.where(entropy > most, most, entropy))
        gl.store(entropy_at + line, gl.where(dead, 0.0, entropy), mask=wanted & (line < present))

    by_row: gl.constexpr = gl.SliceLayout(1, out.type.layout)
    factor = gl.convert_layout(1.0 / mass, by_row, assert_trivial=True)
    zero = gl.convert_layout(dead.to(gl.int32), by_row, assert_trivial=True) != 0
    out = gl.where(zero[:, None], 0.0, out * factor[:, None])
    # 16 bytes a lane, side by side, for the memory's sake.
    coalesced: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    narrow = gl.convert_layout(out.to(out_at.dtype.element_ty), coalesced)
    line = gl.arange(0, ROWS, layout=gl.SliceLayout(1, coalesced))
    column = gl.arange(0, D, layout=gl.SliceLayout(0, coalesced))
    inside = gl.convert_layout(wanted.to(gl.int32), line.type.layout) != 0
    inside = inside & (line < present)
    # 64 rows of a head lie within 2^31 elements of each other, but maybe not of OUT.
    offsets = (line * (heads * D))[:, None] + column[None, :]
    gl.store(out_at + offsets, narrow, mask=inside[:, None])


@gluon.jit
def _consumer(
    args, WARPGROUP: gl.constexpr, WARPGROUPS: gl.constexpr,
    EXACT: gl.constexpr, SPLIT: gl.constexpr, WITH_ENTROPY: gl.constexpr, BIAS: gl.constexpr,
):  # fmt: skip
    """64 queries against all keys of a part."""
    q_tiles, q_full, ring, keys, scale, biases, places = args
    _, _, _, _, heads, queries, blocks, splits, _ = places
    if WARPGROUPS > 1 and WARPGROUP == WARPGROUPS - 1:
        turn(0, GIVE_TURN)
    mbarrier.wait(q_full, 0)
    q = q_tiles.index(WARPGROUP).reshape([ROWS, q_tiles.shape[4]])
    none = gl.to_tensor(0)
    program = gl.program_id(0)
    head_of_all, block, split = _place(program, blocks, splits, SPLIT)
    first, keys = _part(keys, split, splits, SPLIT)
    row = (block * WARPGROUPS + WARPGROUP) * ROWS
    BIAS_AT, bias_stride_b, bias_stride_h, bias_stride_q = biases
    bias_at = BIAS_AT + (head_of_all // heads).to(gl.int64) * bias_stride_b
    bias_at += (head_of_all % heads).to(gl.int64) * bias_stride_h + row.to(gl.int64) * bias_stride_q + first
    bias = (bias_at, bias_stride_q, queries - row)
    out, reference, mass, energy = attend(
        q, ring, none, keys, scale, bias, WARPGROUP, WARPGROUPS, EXACT, WITH_ENTROPY, BIAS
    )
    if EXACT:
        wanted = gl.full([ROWS], True, gl.int1, reference.type.layout)
        _store(
            out, reference, mass, energy, wanted, program, places, WARPGROUP, WARPGROUPS, SPLIT, WITH_ENTROPY
        )
    else:
        # 0 * x is 0 for numbers and NaN for everything else.
        zero = gl.convert_layout(gl.sum(out * 0.0, axis=1), reference.type.layout)
        good = (mass > 0.0) & (mass < LIMIT) & (energy == energy) & (zero == 0.0)
        _store(
            out, reference, mass, energy, good, program, places, WARPGROUP, WARPGROUPS, SPLIT, WITH_ENTROPY
        )
        again = vote(gl.max(gl.where(good, 0, 1), axis=0), 128 * WARPGROUPS + 32)
        if again != 0:
            # `again` is 1 here, which the compiler cannot know: else it would keep what both passes compute
            # from these two in registers that the second needs.
            keys += again - 1
            program += again - 1
            done = gl.cdiv(keys, ring[0].shape[3])
            out, reference, mass, energy = attend(
                q, ring, done, keys, scale, bias, WARPGROUP, WARPGROUPS, True, WITH_ENTROPY, BIAS
            )
            _store(
                out, reference, mass, energy, good == 0, program, places, WARPGROUP, WARPGROUPS, SPLIT,
                WITH_ENTROPY,
            )  # fmt: skip
    if WARPGROUPS > 1 and WARPGROUP == 0:
        turn(0, WAIT_TURN)


@gluon.jit
def _fill(K, V, ring, done, b, h, first, keys):
    """Send all tiles of a pass through the ring, as `done` tiles were before."""
    k_tiles, v_tiles, k_full, k_empty, v_full, v_empty = ring
    STAGES: gl.constexpr = k_tiles.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    BYTES: gl.constexpr = K.block_type.nbytes
    tiles = gl.cdiv(keys, BLOCK_N)
    # A slot's first wait must pass at once: its barrier is then in the phase before phase 0.
    slot, phase = done % STAGES, ((done // STAGES) & 1) ^ 1
    key = first
    for i in range(tiles):
        mbarrier.wait(k_empty.index(slot), phase)
        mbarrier.expect(k_full.index(slot), BYTES)
        tma.async_copy_global_to_shared(K, [b, h, key, 0], k_full.index(slot), k_tiles.index(slot))
        mbarrier.wait(v_empty.index(slot), phase)
        mbarrier.expect(v_full.index(slot), BYTES)
        tma.async_copy_global_to_shared(V, [b, h, key, 0], v_full.index(slot), v_tiles.index(slot))
        slot, phase = next_slot(slot, phase, STAGES)
        # The first tile holds the first keys; the others end with the last one.
        key = first + keys - (tiles - 1 - i) * BLOCK_N


@gluon.jit
def _producer(args, WARPGROUPS: gl.constexpr, EXACT: gl.constexpr, SPLIT: gl.constexpr):
    """Fetch the queries once and the keys and values as often as the consumers need them."""
    Q, K, V, q_tiles, q_full, ring, heads, group, keys, blocks, splits = args
    head_of_all, block, split = _place(gl.program_id(0), blocks, splits, SPLIT)
    first, keys = _part(keys, split, splits, SPLIT)
    row = block * (WARPGROUPS * ROWS)
    b, h = head_of_all // heads, head_of_all % heads
    BYTES: gl.constexpr = Q.block_type.nbytes * WARPGROUPS
    mbarrier.expect(q_full, BYTES)
    for i in gl.static_range(WARPGROUPS):
        tma.async_copy_global_to_shared(Q, [b, h, row + i * ROWS, 0], q_full, q_tiles.index(i))
    _fill(K, V, ring, gl.to_tensor(0), b, h // group, first, keys)
    if not EXACT:
        again = vote(gl.to_tensor(0), 128 * WARPGROUPS + 32)
        if again != 0:
            _fill(K, V, ring, gl.cdiv(keys, ring[0].shape[3]), b, h // group, first, keys)


@gluon.jit(
    do_not_specialize=[
        "BIAS_AT", "bias_stride_b", "bias_stride_h", "bias_stride_q",
        "heads", "group", "queries", "keys", "blocks", "splits",
    ]
)  # fmt: skip
def attention_entropy_hopper(
    Q, K, V, BIAS_AT, OUT, ENTROPY, PART, STATS, bias_stride_b, bias_stride_h, bias_stride_q, heads, group, queries, keys, blocks, splits, scale, most,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, WARPGROUPS: gl.constexpr,
    REGISTERS: gl.constexpr, EXACT: gl.constexpr, SPLIT: gl.constexpr, WITH_ENTROPY: gl.constexpr,
    BIAS: gl.constexpr,
):  # fmt: skip
    """One program: 64 * WARPGROUPS (1 or 2) queries of one head over one of `splits` parts of the keys.

    The grid is [blocks * splits * B * H]. Q [B, H, Nq, D], K and V [B, H / group, Nk, D], Nk >= splits *
    BLOCK_N, are descriptors of tiles [1, 1, 64 or BLOCK_N, D]; OUT [B, Nq, H, D] contiguous, ENTROPY [B * H, Nq]
    float32, left alone unless WITH_ENTROPY. With SPLIT, PART [splits, B * H, Nq, D] and STATS
    [splits, B * H, Nq, 3] (m, l, e) are written instead, float32. With BIAS, BIAS_AT [B, H, Nq, Nk] by strides,
    1 from key to key, is uint8 (0: not attended) or floating. `scale` is in base 2, not negative; `most` is
    log Nk. REGISTERS is what a thread of the second consumer gets.
    """
    q_tiles = gl.allocate_shared_memory(Q.dtype, [WARPGROUPS, 1, 1, ROWS, D], Q.layout)
    k_tiles = gl.allocate_shared_memory(K.dtype, [STAGES, 1, 1, BLOCK_N, D], K.layout)
    v_tiles = gl.allocate_shared_memory(V.dtype, [STAGES, 1, 1, BLOCK_N, D], V.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=WARPGROUPS)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=WARPGROUPS)
    fence_async_shared()
    ring = (k_tiles, v_tiles, k_full, k_empty, v_full, v_empty)
    places = (OUT, ENTROPY, PART, STATS, heads, queries, blocks, splits, most)
    biases = (BIAS_AT, bias_stride_b, bias_stride_h, bias_stride_q)
    consumed = (q_tiles, q_full, ring, keys, scale, biases, places)
    produced = (Q, K, V, q_tiles, q_full, ring, heads, group, keys, blocks, splits)
    if WARPGROUPS == 1:
        gl.warp_specialize(
            [
                (_consumer, (consumed, 0, WARPGROUPS, EXACT, SPLIT, WITH_ENTROPY, BIAS)),
                (_producer, (produced, WARPGROUPS, EXACT, SPLIT)),
            ],
            [1], [24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consumer, (consumed, 0, WARPGROUPS, EXACT, SPLIT, WITH_ENTROPY, BIAS)),
                (_consumer, (consumed, 1, WARPGROUPS, EXACT, SPLIT, WITH_ENTROPY, BIAS)),
                (_producer, (produced, WARPGROUPS, EXACT, SPLIT)),
            ],
            [4, 1], [REGISTERS, 24],
        )  # fmt: skip
