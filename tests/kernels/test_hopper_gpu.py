"""The Hopper kernel on a GPU, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.kernels.oracle import check, quantised
from toprovar_compiler.kernels import (
    hopper_attention,
    ops,  # noqa: F401  (registers the operators)
)
from toprovar_compiler.kernels.hopper_attention import attend_on_hopper, choose_plan, hopper_shortfall
from toprovar_compiler.kernels.hopper_plans import PLANS, Plan, choose
from toprovar_compiler.kernels.reference import attention_entropy_reference

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_hopper")]

DTYPES = (torch.bfloat16, torch.float16)
HOPPER, OLDEST_TRITON = (9, 0), "3.6"
# What the project asks of an entropy in nats, whatever the inputs.
ENTROPY_ERROR = 1e-5
# Equal keys have l = Nk and e = 0 exactly. What remains is the hardware's base-2 logarithm, right to 2^-22 of the
# result, and the rounding of ln 2 and of the product with it, half an eps each: less than 4 eps.
LOGARITHM_ERROR = 4 * torch.finfo(torch.float32).eps
# B, H, Hkv, Nq, Nk, D: both plans of both head sizes, rows and keys that fill no tile
SHAPES = [
    (1, 2, 2, 128, 128, 64),
    (1, 2, 2, 128, 129, 128),
    (2, 3, 3, 129, 255, 64),
    (1, 1, 1, 4097, 257, 128),
    (2, 16, 16, 256, 521, 128),
    (2, 30, 30, 256, 680, 64),
    (1, 2, 1, 4097, 4097, 64),
    (2, 16, 16, 1024, 2521, 128),
    (2, 16, 4, 1025, 2177, 64),
    (2, 36, 36, 576, 1216, 64),
    (1, 16, 4, 1088, 10521, 128),
]


@pytest.fixture
def needs_hopper() -> None:
    pytest.importorskip("triton", minversion=OLDEST_TRITON, reason="an older Triton has another Gluon")
    if torch.cuda.get_device_capability() != HOPPER:
        pytest.skip("the kernel is for compute capability 9.0 alone")
    # A kernel that does not compile or launch falls back but for a warning; here it is what to find.
    for size in PLANS:
        for dtype in DTYPES:
            assert hopper_shortfall(torch.device("cuda"), size, dtype) is None


@pytest.fixture(autouse=True, params=["as chosen", "first plan, whole rows"])
def each_plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small operands would all run the last plan, on parts of the keys: run what large ones do as well."""
    if request.param == "as chosen":
        return

    def first(
        heads: int, queries: int, keys: int, size: int, processors: int, biased: bool
    ) -> tuple[Plan, int] | None:
        chosen = choose(heads, queries, keys, size, processors, biased)
        fits = chosen is not None and not biased and keys >= PLANS[size][0].keys
        return (PLANS[size][0], 1) if fits else chosen

    monkeypatch.setattr(hopper_attention, "choose", first)


def operands(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as models have them: transposed views of `[B, N, H, D]`."""
    batch, heads, kv_heads, queries, keys, size = shape
    lengths = ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    q, k, v = (
        quantised(batch, n, h, size, dtype=dtype, seed=i, device="cuda").transpose(1, 2)
        for i, (n, h) in enumerate(lengths)
    )
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """The Hopper kernel itself, on outputs that start as NaN."""
    batch, heads, queries, size = q.shape
    out = q.new_full((batch, queries, heads, size), torch.nan).transpose(1, 2)
    entropy = torch.full((batch, heads, queries), torch.nan, device=q.device)
    assert attend_on_hopper(q, k, v, None, out, entropy, 1 / math.sqrt(size) if scale is None else scale)
    return out, entropy


def check_near_one_hot(out: Tensor, entropy: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    """`check`, with an absolute bound on the entropy.

    Where all entropies are nearly 0, twice the error of the plain computation is nearly 0 too, and leaves no
    room for one rounding of l, the sum of weights, which is at least 1; nor for that of log l - e / l far
    above the reference.
    """
    exact = attention_entropy_reference(q.double(), k.double(), v.double(), None, scale)[1]
    assert float((entropy - exact).abs().max()) < ENTROPY_ERROR
    check(out, exact.float(), q, k, v, None, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sweep(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = operands(shape, dtype)
    out, entropy = attend(q, k, v)
    scale = 1 / math.sqrt(shape[-1])
    check(out, entropy, q, k, v, None, scale)
    exact = attention_entropy_reference(q.double(), k.double(), v.double(), None, scale)[1]
    assert float((entropy - exact).abs().max()) < ENTROPY_ERROR


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("keys", [1, 127, 128, 129, 4097])
@pytest.mark.parametrize("queries", [1, 127, 128, 129, 4097])
def test_lengths_through_the_operator(queries: int, keys: int, size: int, dtype: torch.dtype) -> None:
    q, k, v = operands((1, 2, 2, queries, keys, size), dtype)
    out, entropy = torch.ops.toprovar.flash_attention_entropy(q, k, v, None, None)
    check(out, entropy, q, k, v, None, 1 / math.sqrt(size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("nats", [20, 60, 80, 300])
def test_late_maxima(nats: int, size: int, dtype: torch.dtype) -> None:
    """Rows whose largest logit comes late, up to far beyond what the first tile's maximum can refer to."""
    q, k, v = operands((1, 24, 24, 300, 3001, size), dtype)
    scale = 1 / math.sqrt(size)
    for row, key in ((7, 2900), (64, 3000), (150, 129), (299, 1500)):
        one = q[:, :, row].double()
        k[:, :, key] = (one * (nats / (one.square().sum(-1, keepdim=True) * scale))).to(dtype)
    out, entropy = attend(q, k, v)
    check(out, entropy, q, k, v, None, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128])
def test_every_row_overflows(size: int, dtype: torch.dtype) -> None:
    q, k, v = operands((1, 8, 8, 1024, 2000, size), dtype)
    q[..., 0], k[..., 0] = 40.0, 0.0
    k[:, :, 1900, 0] = 40.0
    out, entropy = attend(q, k, v)
    check_near_one_hot(out, entropy, q, k, v, 1 / math.sqrt(size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128])
def test_cosine_attention(size: int, dtype: torch.dtype) -> None:
    q, k, v = operands((1, 24, 24, 300, 3001, size), dtype)
    q = torch.nn.functional.normalize(q.float(), dim=-1).to(dtype)
    k = torch.nn.functional.normalize(k.float(), dim=-1).to(dtype)
    k[:, :, 2000:2300] = q
    out, entropy = attend(q, k, v, 50.0)
    check_near_one_hot(out, entropy, q, k, v, 50.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("keys", [128, 1000, 1037])
def test_constant_keys(keys: int, size: int, dtype: torch.dtype) -> None:
    q, k, v = operands((2, 4, 4, 200, keys, size), dtype)
    k = k[:, :, :1].repeat(1, 1, keys, 1)
    out, entropy = attend(q, k, v)
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(keys)), rtol=LOGARITHM_ERROR, atol=0)
    check(out, entropy, q, k, v, None, 1 / math.sqrt(size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128])
def test_nan_stays_in_its_rows(size: int, dtype: torch.dtype) -> None:
    q, k, v = operands((1, 3, 3, 300, 1000, size), dtype)
    clean_out, clean_entropy = attend(q, k, v)
    q[0, 1, 5] = torch.nan
    q[0, 2, 299, 3] = torch.inf
    out, entropy = attend(q, k, v)
    bad = torch.zeros(1, 3, 300, dtype=torch.bool, device="cuda")
    bad[0, 1, 5] = bad[0, 2, 299] = True
    assert torch.equal(entropy.isnan(), bad)
    assert out[bad].isnan().all()
    assert torch.equal(out[~bad], clean_out[~bad])
    assert torch.equal(entropy[~bad], clean_entropy[~bad])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key", [0, 127, 700, 999])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinite_keys(value: float, key: int, dtype: torch.dtype) -> None:
    """A logit of +inf or NaN makes its row NaN, one of -inf is a key that is not attended."""
    q, k, v = operands((1, 4, 4, 300, 1000, 64), dtype)
    k[:, :, key] = 0.0
    k[:, 1:3, key, 0] = value
    out, entropy = attend(q, k, v)
    exact_out, exact_entropy = attention_entropy_reference(q.double(), k.double(), v.double(), None, 0.125)
    assert torch.equal(entropy.isnan(), exact_entropy.isnan())
    assert torch.equal(out.isnan(), exact_out.isnan())
    for head in range(4):
        # A key of -inf or NaN has no plain computation to compare with; its finite rows are those without it.
        rows = exact_entropy[0, head].isfinite()
        attended = k[0, head].isfinite().all(-1)
        one = slice(head, head + 1)
        if rows.any():
            check(
                out[:, one, rows], entropy[:, one, rows], q[:, one, rows], k[:, one, attended],
                v[:, one, attended], None, 0.125,
            )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_a_finite_logit_are_zero(dtype: torch.dtype) -> None:
    q, k, v = operands((1, 2, 2, 200, 300, 64), dtype)
    k.zero_()
    k[..., 0] = torch.inf
    q[:, :, :, 0] = 1.0
    q[:, :, 3::7, 0] = -1.0
    out, entropy = attend(q, k, v)
    assert not out[:, :, 3::7].any()
    assert not entropy[:, :, 3::7].any()
    assert int(entropy.isnan().sum()) == 2 * (200 - len(range(3, 200, 7)))


def test_large_values_do_not_overflow_the_sums() -> None:
    """Weights of 2^80 times values of 2^60: the sum is infinite, their mean is not."""
    q, k, v = operands((1, 2, 2, 200, 1000, 64), torch.bfloat16)
    q[..., 0], k[..., 0] = 16.0, 0.0
    k[:, :, 900, 0] = 28.0
    v *= 2.0**60
    out, entropy = attend(q, k, v)
    check_near_one_hot(out, entropy, q, k, v, 0.125)


@pytest.mark.parametrize("layout", ["packed", "contiguous", "sliced", "offset"])
def test_layouts_give_the_same(layout: str) -> None:
    q, k, v = operands((2, 4, 4, 300, 300, 64), torch.bfloat16)
    dense = attend(q, k, v)
    if layout == "packed":
        parts = torch.stack([x.transpose(1, 2) for x in (q, k, v)], 2).unbind(2)
        moved = [x.transpose(1, 2) for x in parts]
    elif layout == "contiguous":
        moved = [x.contiguous() for x in (q, k, v)]
    elif layout == "sliced":
        moved = [torch.cat([x.new_full(x.shape, torch.nan), x, x], -1)[..., 64:128] for x in (q, k, v)]
    else:
        moved = [torch.cat([x[:, :, :5] * torch.nan, x], 2)[:, :, 5:] for x in (q, k, v)]
    got = attend(*moved)
    assert all(torch.equal(a, b) for a, b in zip(got, dense, strict=True))


def test_scale_zero_is_the_mean() -> None:
    q, k, v = operands((1, 4, 4, 300, 300, 64), torch.bfloat16)
    out, entropy = attend(q, k, v, 0.0)
    check(out, entropy, q, k, v, None, 0.0)


@pytest.mark.parametrize("kind", ["bias of a query", "head size", "few queries", "float32", "misaligned", "expanded"])
def test_the_rest_falls_through(kind: str) -> None:
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    size = 80 if kind == "head size" else 64
    q, k, v = operands((2, 2, 2, 17 if kind == "few queries" else 200, 300, size), dtype)
    bias = torch.zeros(200, 1, device="cuda") if kind == "bias of a query" else None
    if kind == "misaligned":
        q, k, v = (torch.cat([x[..., :1], x], -1)[..., 1:] for x in (q, k, v))
    if kind == "expanded":
        k, v = (x[:1].expand_as(x) for x in (k, v))
    assert choose_plan(q, k, v, bias) is None
    out, entropy = torch.ops.toprovar.flash_attention_entropy(q, k, v, bias, 0.125)
    check(out, entropy, q, k, v, bias, 0.125)
