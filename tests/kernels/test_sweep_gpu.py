"""The operator on a GPU against float64: every head size, length and mask, hard values, far offsets, repeats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.kernels.oracle import check, quantised
from toprovar_compiler.kernels import ops  # noqa: F401  (registers the operators)
from toprovar_compiler.kernels.reference import attention_entropy_reference

pytestmark = pytest.mark.gpu

SIZES = (1, 16, 32, 48, 59, 64, 80, 96, 112, 128, 160, 192, 200, 256)
LENGTHS = (
    (1, 1), (1, 16384), (2, 127), (15, 1000), (16, 4097), (17, 129), (33, 16384), (64, 65), (65, 2),
    (127, 4097), (128, 128), (129, 16384), (1025, 2521), (4097, 129), (4097, 16384),
)  # fmt: skip
MASKS = (
    "rows", "keys", "queries", "heads", "blocks", "dead rows", "float", "float rows", "one value a key",
    "minus infinity", "transposed", "expanded",
)  # fmt: skip
# Head sizes and lengths that take each of the kernels' roads: few queries, split keys, Hopper, padded heads
ROADS = ((64, 300, 1000), (80, 17, 4097), (128, 1, 16384), (128, 1025, 700), (256, 200, 321))
REPEATS, RACES = 50, 250
# What the project asks of an entropy in nats, whatever the inputs.
ENTROPY_ERROR = 1e-5


def operands(
    size: int, queries: int, keys: int, dtype: torch.dtype = torch.bfloat16, heads: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as models have them: transposed views of `[1, N, H, D]`."""
    q, k, v = (
        quantised(1, n, heads, size, dtype=dtype, seed=i, device="cuda").transpose(1, 2)
        for i, n in enumerate((queries, keys, keys))
    )
    return q, k, v


def mask(kind: str, heads: int, queries: int, keys: int) -> Tensor:
    """A bool or floating bias that broadcasts to `[1, heads, queries, keys]`."""
    normal = quantised(1, heads, queries, keys, dtype=torch.float32, seed=3, device="cuda")
    some = normal > -0.5
    some[..., 0] = True  # but for "dead rows", every row attends to something
    block = torch.arange(max(queries, keys), device="cuda") // 64
    minus = normal.masked_fill(~some, -math.inf)
    dead = some.clone()
    dead[..., ::3, :] = False
    return {
        "rows": some[0, 0],
        "keys": some[:, :1, :1],
        "queries": some[:, :1, :, :1].logical_or(normal[:, :1, :, :1] > 0),
        "heads": some,
        "blocks": block[None, :keys] <= block[:queries, None],
        "dead rows": dead,
        "float": normal.bfloat16(),
        "float rows": normal[0, 0],
        "one value a key": normal[0, 0, 0],
        "minus infinity": minus,
        "transposed": some[0, 0].T.contiguous().T,
        "expanded": normal[:, :, :1].expand(1, heads, queries, keys),
    }[kind]


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    out, entropy = torch.ops.toprovar.flash_attention_entropy(q, k, v, bias, scale)
    return out, entropy


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_sizes_and_lengths(lengths: tuple[int, int], size: int) -> None:
    queries, keys = lengths
    # Both dtypes at every size and at every length, without doubling the sweep.
    dtype = (torch.bfloat16, torch.float16)[(SIZES.index(size) + LENGTHS.index(lengths)) % 2]
    q, k, v = operands(size, queries, keys, dtype, heads=1 if queries * keys > 1 << 24 else 2)
    check(*attend(q, k, v), q, k, v, None, 1 / math.sqrt(size))


@pytest.mark.parametrize("size", [16, 64, 128, 256])
@pytest.mark.parametrize("lengths", [(1, 16384), (17, 129), (129, 4097)], ids=str)
def test_float32(lengths: tuple[int, int], size: int) -> None:
    q, k, v = operands(size, *lengths, torch.float32)
    check(*attend(q, k, v), q, k, v, None, 1 / math.sqrt(size))


@pytest.mark.parametrize(
    ("road", "dtype"),
    [
        *((road, torch.bfloat16) for road in ROADS),
        (ROADS[0], torch.float16),
        (ROADS[3], torch.float16),
        (ROADS[1], torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", MASKS)
def test_masks(kind: str, road: tuple[int, int, int], dtype: torch.dtype) -> None:
    size, queries, keys = road
    q, k, v = operands(*road, dtype)
    bias = mask(kind, 2, queries, keys)
    out, entropy = attend(q, k, v, bias)
    check(out, entropy, q, k, v, bias, 1 / math.sqrt(size))
    if kind == "dead rows":
        assert not out[:, :, ::3].any()
        assert not entropy[:, :, ::3].any()


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("nats", [20, 80, 300])
@pytest.mark.parametrize("road", ROADS, ids=str)
def test_late_maxima(road: tuple[int, int, int], nats: int, masked: bool) -> None:
    size, queries, keys = road
    q, k, v = operands(*road)
    scale = 1 / math.sqrt(size)
    for row, key in ((0, keys - 1), (queries // 2, keys // 2), (queries - 1, 3 * keys // 4)):
        one = q[:, :, row].double()
        k[:, :, key] = (one * (nats / (one.square().sum(-1, keepdim=True) * scale))).bfloat16()
    bias = mask("float", 2, queries, keys) if masked else None
    out, entropy = attend(q, k, v, bias)
    wide = None if bias is None else bias.double()
    exact = attention_entropy_reference(q.double(), k.double(), v.double(), wide, scale)[1]
    # A logit of so many nats is itself right to an eps of float32 only.
    bound = ENTROPY_ERROR + nats * torch.finfo(torch.float32).eps
    assert float((entropy - exact).abs().max()) < bound
    # With the exact entropy: where all are nearly 0, twice the plain error has no room for one rounding of l.
    check(out, exact.float(), q, k, v, bias, scale)


@pytest.mark.parametrize("road", ROADS, ids=str)
def test_constant_keys_give_the_logarithm(road: tuple[int, int, int]) -> None:
    q, k, v = operands(*road)
    k = k[:, :, :1].repeat(1, 1, road[2], 1)
    out, entropy = attend(q, k, v)
    expected = torch.full_like(entropy, math.log(road[2]))
    # Four roundings: test_hopper_gpu.py says which.
    torch.testing.assert_close(entropy, expected, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
    check(out, entropy, q, k, v, None, 1 / math.sqrt(road[0]))


@pytest.mark.parametrize("road", ROADS, ids=str)
def test_cosine_attention(road: tuple[int, int, int]) -> None:
    size, queries, keys = road
    q, k, v = operands(*road)
    q, k = (torch.nn.functional.normalize(x.float(), dim=-1).bfloat16() for x in (q, k))
    near = min(queries, keys)
    k[:, :, keys - near :] = q[:, :, :near]
    out, entropy = attend(q, k, v, None, 50.0)
    exact = attention_entropy_reference(q.double(), k.double(), v.double(), None, 50.0)[1]
    assert float((entropy - exact).abs().max()) < ENTROPY_ERROR
    check(out, exact.float(), q, k, v, None, 50.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "bias"])
@pytest.mark.parametrize("road", ROADS, ids=str)
def test_what_is_not_finite_goes_where_the_definition_says(
    road: tuple[int, int, int], where: str, value: float
) -> None:
    size, queries, keys = road
    q, k, v = operands(*road)
    bias = mask("float rows", 2, queries, keys).clone() if where == "bias" else None
    changed = {"q": q, "k": k, "v": v, "bias": bias}[where]
    assert changed is not None
    changed[..., changed.shape[-2] // 2, changed.shape[-1] // 3] = value
    out, entropy = attend(q, k, v, bias)
    wide = [x.double() for x in (q, k, v)]
    exact_out, exact_entropy = attention_entropy_reference(
        *wide, None if bias is None else bias.double(), 1 / math.sqrt(size)
    )
    assert torch.equal(entropy.isnan(), exact_entropy.isnan())
    assert torch.equal(out.isfinite(), exact_out.isfinite())
    finite = exact_entropy.isfinite()
    assert float((entropy - exact_entropy)[finite].abs().sum()) < ENTROPY_ERROR * max(int(finite.sum()), 1)


@pytest.mark.parametrize("kind", [None, "blocks", "float"])
@pytest.mark.parametrize("road", ROADS, ids=str)
def test_runs_repeat_bitwise(road: tuple[int, int, int], kind: str | None) -> None:
    q, k, v = operands(*road)
    bias = None if kind is None else mask(kind, 2, *road[1:])
    first = attend(q, k, v, bias)
    for _ in range(REPEATS):
        assert all(torch.equal(a, b) for a, b in zip(attend(q, k, v, bias), first, strict=True))


@pytest.mark.parametrize("kind", [None, "rows"])
@pytest.mark.parametrize("road", [(64, 100, 4097), (128, 2049, 1025), (80, 640, 777)], ids=str)
def test_no_races_with_an_emptied_cache(road: tuple[int, int, int], kind: str | None) -> None:
    q, k, v = operands(*road, heads=8)
    bias = None if kind is None else mask(kind, 8, *road[1:])
    first = attend(q, k, v, bias)
    assert first[0].isfinite().all()
    cache = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
    for i in range(RACES):
        if i % 5 == 0:
            cache.zero_()  # tiles then come from memory, in another order
        again = attend(q, k, v, bias)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), f"repeat {i}"


@pytest.mark.parametrize("size", [64, 80])
def test_outputs_beyond_int32(size: int) -> None:
    """More than 2^31 elements in q and in the output: the last rows are those of a small call."""
    heads, keys = 16, 128
    queries = (1 << 31) // (heads * size) + 1000
    q, k, v = operands(size, 1, keys, heads=heads)
    many = torch.zeros(1, queries, heads, size, dtype=torch.bfloat16, device="cuda")
    last = quantised(1, 200, heads, size, dtype=torch.bfloat16, seed=5, device="cuda")
    many[:, -200:] = last
    assert many.numel() > 1 << 31
    out, entropy = attend(many.transpose(1, 2), k, v)
    near_out, near_entropy = attend(last.transpose(1, 2), k, v)
    check(out[:, :, -200:], entropy[:, :, -200:], last.transpose(1, 2), k, v, None, 1 / math.sqrt(size))
    check(near_out, near_entropy, last.transpose(1, 2), k, v, None, 1 / math.sqrt(size))
    assert entropy[:, :, 0].allclose(torch.tensor(math.log(keys), device="cuda"))


def test_keys_beyond_int32() -> None:
    """Keys and values whose rows lie up to 2^32 elements apart, for the copy engine too."""
    keys, size, apart = 257, 64, 1 << 24
    wide = torch.empty(keys * apart, dtype=torch.bfloat16, device="cuda").view(keys, apart)
    k, v = wide[:, :size], wide[:, size : 2 * size]
    source = quantised(2, keys, size, dtype=torch.bfloat16, seed=1, device="cuda")
    k.copy_(source[0])
    v.copy_(source[1])
    q = quantised(1, 1, 200, size, dtype=torch.bfloat16, seed=0, device="cuda")
    far = attend(q, k[None, None], v[None, None])
    near = attend(q, source[:1, None], source[1:, None])
    assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))


def test_a_bias_beyond_int32() -> None:
    queries, keys, size = 140_000, 16384, 16
    q, k, v = operands(size, queries, keys, heads=1)
    bias = torch.zeros(queries, keys, dtype=torch.bool, device="cuda")
    bias[:, ::3] = True
    bias[-100:, 5::7] = True
    assert bias.numel() > 1 << 31
    out, entropy = attend(q, k, v, bias)
    last = q[:, :, -100:].contiguous()
    check(out[:, :, -100:], entropy[:, :, -100:], last, k, v, bias[-100:].clone(), 1 / math.sqrt(size))
