"""What a warpgroup of the Hopper kernel does to tiles of keys and values: the softmax and both products.

There are BLOCK_N keys at least, and the tiles are laid so that all are full: the first holds the first
BLOCK_N keys, of which those that other tiles cover count for the maximum only; the last ends with the last
key.
"""

# Gluon reads the arguments of a kernel from its source; annotations other than gl.constexpr mean nothing.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

ROWS = gl.constexpr(64)  # queries a warpgroup: the height of a wgmma
# Stands for "no key yet", in base 2; finite, also times any number of keys.
LOWEST = gl.constexpr(-1.0e30)
LOG2_E = gl.constexpr(1.4426950408889634)
# Columns that the sums of a row are kept in until the end; a lane owns two, so that none crosses lanes.
PARTS = gl.constexpr(8)

# Hardware barriers; Triton itself takes the lowest of the 16.
_FIRST_TURN = gl.constexpr(8)
WAIT_TURN = gl.constexpr("bar.sync $1, 256; mov.b32 $0, $1;")
GIVE_TURN = gl.constexpr("bar.arrive $1, 256; mov.b32 $0, $1;")
_VOTE = gl.constexpr(
    "{ .reg .pred mine, all; setp.ne.b32 mine, $1, 0; "
    "bar.red.or.pred all, 14, $2, mine; selp.b32 $0, 1, 0, all; }"
)
# Four sums of weights ($8 to $11) and four of their products with logits ($12 to $15).
_PIN = gl.constexpr(
    "{ .reg .pred never; .reg .f32 mass, energy; "
    "add.f32 mass, $8, $9; add.f32 mass, mass, $10; add.f32 mass, mass, $11; "
    "add.f32 energy, $12, $13; add.f32 energy, energy, $14; add.f32 energy, energy, $15; "
    "setp.lt.f32 never, mass, 0fBF800000; setp.lt.and.f32 never, energy, 0f7F800000, never; "
    "@never bar.sync 13, 128; "
    "mov.f32 $0, $8; mov.f32 $1, $9; mov.f32 $2, $10; mov.f32 $3, $11; "
    "mov.f32 $4, $12; mov.f32 $5, $13; mov.f32 $6, $14; mov.f32 $7, $15; }"
)


@gluon.jit
def turn(WARPGROUP: gl.constexpr, ASM: gl.constexpr):
    """Wait for, or give, a warpgroup's turn at the tensor cores: one multiplies while another does not."""
    one_a_thread: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    barrier = gl.full([128], _FIRST_TURN + WARPGROUP, gl.int32, one_a_thread)
    gl.inline_asm_elementwise(ASM, "=r,r", [barrier], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def vote(flag, THREADS: gl.constexpr):
    """1 if `flag` is not 0 in any of THREADS threads, which all wait here, else 0."""
    return gl.inline_asm_elementwise(
        _VOTE, "=r,r,r", [flag, gl.to_tensor(THREADS)], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _pin(mass, energy):
    """Keep the assembler from moving the next wait for a wgmma above the softmax, where it would idle.

    It moves none across a barrier, so here is one that is never reached: weights are not negative, and
    comparisons with NaN are false. It depends on all sums, and so on the whole softmax.
    """
    return gl.inline_asm_elementwise(
        _PIN, "=f,=f,=f,=f,=f,=f,=f,=f,f,f,f,f,f,f,f,f", [mass, energy],
        dtype=[gl.float32, gl.float32], is_pure=False, pack=4,
    )  # fmt: skip


@gluon.jit
def _by_lane(x):
    """Sums over the columns of [64, N], as far as they need no other lane: [64, PARTS]."""
    return gl.sum(gl.reshape(x, [ROWS, x.shape[1] // PARTS, PARTS]), axis=1)


@gluon.jit
def _biased(products, scale, bias, key):
    """Base-2 logits of a tile [64, BLOCK_N] of keys from `key` on, with the bias added or masked to -inf.

    `bias` is where the first of the rows starts, at key 0, what is from row to row, and how many rows there are.
    """
    at, stride, present = bias
    layout: gl.constexpr = products.type.layout
    # A row that is not there has the last one's bias.
    row = gl.minimum(gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout)), present - 1)
    column = gl.arange(0, products.shape[1], layout=gl.SliceLayout(0, layout))
    value = gl.load(at + key + (row * stride)[:, None] + column[None, :])
    if value.dtype == gl.uint8:
        logits = gl.where(value != 0, products * scale, float("-inf"))
    else:
        logits = products * scale + value.to(gl.float32) * LOG2_E
    return logits


@gluon.jit
def _first_weights(products, counted, scale, WITH_ENTROPY: gl.constexpr):
    """Weights of the first tile [64, BLOCK_N], the row references, and the sums by lane.

    Columns from `counted` on are another tile's: they only help to find a large reference.
    """
    column = gl.arange(0, products.shape[1], layout=gl.SliceLayout(0, products.type.layout))
    # The exact pass needs it finite where all logits are -inf; the fast pass finds those rows by their l = 0.
    reference = gl.maximum(gl.max(products, axis=1) * scale, LOWEST)
    shifted = gl.where((column < counted)[None, :], products * scale - reference[:, None], LOWEST)
    weights = gl.exp2(shifted)
    mass = _by_lane(weights)
    if WITH_ENTROPY:
        # 0 * -inf would be NaN. This maximum drops a NaN, but its weight is NaN all the same.
        energy = _by_lane(weights * gl.maximum(shifted, LOWEST))
    else:
        energy = mass
    return weights, reference, mass, energy


@gluon.jit
def _weights(
    products, reference, mass, energy, scale,
    EXACT: gl.constexpr, WITH_ENTROPY: gl.constexpr, BIAS: gl.constexpr,
):  # fmt: skip
    """Weights of a full tile [64, BLOCK_N], the sums with it, and what the sums before it decay by."""
    decay = reference
    if EXACT:
        larger = gl.maximum(reference, gl.max(products, axis=1) * scale)
        decay = gl.exp2(reference - larger)
        by_lane: gl.constexpr = gl.SliceLayout(1, mass.type.layout)
        wide_decay = gl.convert_layout(decay, by_lane, assert_trivial=True)[:, None]
        moved = gl.convert_layout(reference - larger, by_lane, assert_trivial=True)[:, None]
        if WITH_ENTROPY:
            energy = wide_decay * (energy + moved * mass)
        mass = wide_decay * mass
        reference = larger
    shifted = products * scale - reference[:, None]
    weights = gl.exp2(shifted)
    mass += _by_lane(weights)
    if WITH_ENTROPY:
        energy += _by_lane(weights * gl.maximum(shifted, LOWEST) if EXACT or BIAS else weights * shifted)
    else:
        energy = mass
    mass, energy = _pin(mass, energy)
    return weights, reference, mass, energy, decay


@gluon.jit
def next_slot(slot, phase, STAGES: gl.constexpr):
    """The next place in a ring of STAGES; the phase changes with each round."""
    slot += 1
    if slot == STAGES:
        slot = 0
        phase ^= 1
    return slot, phase


@gluon.jit
def attend(
    q, ring, done, keys, scale, bias,
    WARPGROUP: gl.constexpr, WARPGROUPS: gl.constexpr, EXACT: gl.constexpr, WITH_ENTROPY: gl.constexpr,
    BIAS: gl.constexpr,
):  # fmt: skip
    """A pass over all keys: unnormalised out [64, D], references, and l and e [64]; l twice without entropy.

    `done` tiles went through the ring before, which is where the pass finds its own.
    The products of a tile with the keys run while the tile before it is multiplied by the values.
    """
    k_tiles, v_tiles, k_full, k_empty, v_full, v_empty = ring
    STAGES: gl.constexpr = k_tiles.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    D: gl.constexpr = k_tiles.shape[4]
    TURNS: gl.constexpr = WARPGROUPS > 1
    NEXT: gl.constexpr = (WARPGROUP + 1) % WARPGROUPS
    products_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, k_width=2)
    tiles = gl.cdiv(keys, BLOCK_N)
    slot, phase = done % STAGES, (done // STAGES) & 1

    weights = gl.zeros([ROWS, BLOCK_N], gl.float32, products_layout)
    mbarrier.wait(k_full.index(slot), phase)
    if TURNS:
        turn(WARPGROUP, WAIT_TURN)
    k = k_tiles.index(slot).reshape([BLOCK_N, D]).permute((1, 0))
    token = warpgroup_mma(q, k, weights, use_acc=False, is_async=True)
    if TURNS:
        turn(NEXT, GIVE_TURN)
    products = warpgroup_mma_wait(0, deps=[token])
    mbarrier.arrive(k_empty.index(slot), count=1)
    counted = keys - (tiles - 1) * BLOCK_N
    # What `products` are to be multiplied by; logits with a bias are whole.
    factor = scale
    if BIAS:
        products, factor = _biased(products, scale, bias, 0), 1.0
    weights, reference, mass, energy = _first_weights(products, counted, factor, WITH_ENTROPY)

    out = gl.zeros([ROWS, D], gl.float32, out_layout)
    for tile in range(1, tiles):
        later, later_phase = next_slot(slot, phase, STAGES)
        mbarrier.wait(k_full.index(later), later_phase)
        # Float32 weights cross the loop, not narrow ones: their registers then serve as the next products.
        narrow = gl.convert_layout(weights.to(v_tiles.dtype), weights_layout, assert_trivial=True)
        if TURNS:
            turn(WARPGROUP, WAIT_TURN)
        k = k_tiles.index(later).reshape([BLOCK_N, D]).permute((1, 0))
        token = warpgroup_mma(q, k, weights, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(slot), phase)
        v = v_tiles.index(slot).reshape([BLOCK_N, D])
        out_token = warpgroup_mma(narrow, v, out, is_async=True)
        if TURNS:
            turn(NEXT, GIVE_TURN)
        products = warpgroup_mma_wait(1, deps=[token])
        mbarrier.arrive(k_empty.index(later), count=1)
        if BIAS:
            products = _biased(products, scale, bias, keys - (tiles - tile) * BLOCK_N)
        weights, reference, mass, energy, decay = _weights(
            products, reference, mass, energy, factor, EXACT, WITH_ENTROPY, BIAS
        )
        out, narrow, weights = warpgroup_mma_wait(0, deps=[out_token, narrow, weights])
        mbarrier.arrive(v_empty.index(slot), count=1)
        if EXACT:
            out *= gl.convert_layout(decay, gl.SliceLayout(1, out_layout), assert_trivial=True)[:, None]
        slot, phase = later, later_phase

    mbarrier.wait(v_full.index(slot), phase)
    narrow = gl.convert_layout(weights.to(v_tiles.dtype), weights_layout, assert_trivial=True)
    v = v_tiles.index(slot).reshape([BLOCK_N, D])
    out_token = warpgroup_mma(narrow, v, out, is_async=True)
    by_row: gl.constexpr = gl.SliceLayout(1, products_layout)
    mass = gl.convert_layout(gl.sum(mass, axis=1), by_row)
    energy = gl.convert_layout(gl.sum(energy, axis=1), by_row)
    out, narrow = warpgroup_mma_wait(0, deps=[out_token, narrow])
    mbarrier.arrive(v_empty.index(slot), count=1)
    return out, reference, mass, energy
