"""The Hopper kernel on parts of the keys, against float64: what the parts leave behind joins exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.kernels.oracle import check
from tests.kernels.test_hopper_gpu import DTYPES, ENTROPY_ERROR, LOGARITHM_ERROR, needs_hopper, operands
from toprovar_compiler.kernels.hopper_attention import launch
from toprovar_compiler.kernels.hopper_plans import PLANS, Plan
from toprovar_compiler.kernels.reference import attention_entropy_reference

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_hopper")]
__all__ = ["needs_hopper"]

SPLITS = (2, 3, 7, 16)
# B, H, Hkv, Nq, Nk, D
SHAPES = [
    (1, 2, 2, 1, 2048, 64),
    (2, 3, 3, 63, 2049, 128),
    (1, 4, 2, 130, 10521, 128),
    (2, 4, 4, 256, 2130, 64),
    (1, 1, 1, 1025, 4097, 64),
]


def sharing(size: int) -> list[Plan]:
    """The plans whose programs share a multiprocessor, and may share a row's keys."""
    return [plan for plan in PLANS[size] if plan.resident > 1]


def attend(
    q: Tensor, k: Tensor, v: Tensor, splits: int, scale: float | None = None, plan: Plan | None = None
) -> tuple[Tensor, Tensor]:
    """The narrow plan, or another, on outputs that start as NaN."""
    batch, heads, queries, size = q.shape
    out = q.new_full((batch, queries, heads, size), torch.nan).transpose(1, 2)
    entropy = torch.full((batch, heads, queries), torch.nan, device=q.device)
    scale = 1 / math.sqrt(size) if scale is None else scale
    launch(plan or PLANS[size][-1], splits, q, k, v, None, out, entropy, scale)
    return out, entropy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sweep(shape: tuple[int, ...], splits: int, dtype: torch.dtype) -> None:
    q, k, v = operands(shape, dtype)
    scale = 1 / math.sqrt(shape[-1])
    exact = attention_entropy_reference(q.double(), k.double(), v.double(), None, scale)[1]
    for plan in sharing(shape[-1]):
        out, entropy = attend(q, k, v, splits, plan=plan)
        check(out, entropy, q, k, v, None, scale)
        assert float((entropy - exact).abs().max()) < ENTROPY_ERROR


@pytest.mark.parametrize("size", [64, 128])
def test_the_smallest_parts(size: int) -> None:
    """Parts of a single tile, and of one tile and a key."""
    for plan in sharing(size):
        tile = plan.keys
        for keys in (4 * tile, 4 * tile + 1, 5 * tile - 1):
            q, k, v = operands((1, 2, 2, 100, keys, size), torch.bfloat16)
            check(*attend(q, k, v, 4, plan=plan), q, k, v, None, 1 / math.sqrt(size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [2, 7])
@pytest.mark.parametrize("nats", [20, 60, 80, 300])
def test_late_maxima(nats: int, splits: int, dtype: torch.dtype) -> None:
    """Maxima early, late and at the seam of two parts, up to far beyond what a tile's maximum can refer to."""
    q, k, v = operands((1, 8, 8, 300, 3001, 64), dtype)
    seam = 3001 // splits
    for row, key in ((7, 0), (64, 3000), (150, 129), (200, seam - 1), (201, seam), (299, 1500)):
        one = q[:, :, row].double()
        k[:, :, key] = (one * (nats / (one.square().sum(-1, keepdim=True) * 0.125))).to(dtype)
    out, entropy = attend(q, k, v, splits)
    exact = attention_entropy_reference(q.double(), k.double(), v.double(), None, 0.125)[1]
    # A logit of so many nats is itself right to an eps of float32 only.
    bound = ENTROPY_ERROR + nats * torch.finfo(torch.float32).eps
    assert float((entropy - exact).abs().max()) < bound
    check(out, exact.float(), q, k, v, None, 0.125)


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("size", [64, 128])
def test_constant_keys(size: int, splits: int) -> None:
    q, k, v = operands((2, 4, 4, 100, 2501, size), torch.bfloat16)
    k = k[:, :, :1].repeat(1, 1, 2501, 1)
    _, entropy = attend(q, k, v, splits)
    expected = torch.full_like(entropy, math.log(2501))
    torch.testing.assert_close(entropy, expected, rtol=LOGARITHM_ERROR, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("key", [0, 699, 700, 1399])
def test_infinite_keys(key: int, value: float, dtype: torch.dtype) -> None:
    q, k, v = operands((1, 4, 4, 100, 1400, 64), dtype)
    k[:, :, key] = 0.0
    k[:, 1:3, key, 0] = value
    out, entropy = attend(q, k, v, 2)
    exact_out, exact_entropy = attention_entropy_reference(q.double(), k.double(), v.double(), None, 0.125)
    assert torch.equal(entropy.isnan(), exact_entropy.isnan())
    assert torch.equal(out.isnan(), exact_out.isnan())
    finite = exact_entropy.isfinite()
    torch.testing.assert_close(entropy[finite].double(), exact_entropy[finite], rtol=0, atol=ENTROPY_ERROR)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_without_a_finite_logit(dtype: torch.dtype) -> None:
    """All keys of the first part at -inf, then all keys: rows are those of the second part, then 0."""
    q, k, v = operands((1, 2, 2, 100, 1400, 64), dtype)
    q[..., 0] = -1.0
    k[..., 0] = 0.0
    k[:, :, :700, 0] = torch.inf
    out, entropy = attend(q, k, v, 2)
    check(out, entropy, q, k[:, :, 700:], v[:, :, 700:], None, 0.125)
    k[..., 0] = torch.inf
    out, entropy = attend(q, k, v, 2)
    assert not out.any()
    assert not entropy.any()


@pytest.mark.parametrize("splits", SPLITS)
def test_runs_repeat_bitwise(splits: int) -> None:
    q, k, v = operands(SHAPES[2], torch.bfloat16)
    q[:, :, 77::50, 0], k[..., 0] = 40.0, 0.0
    k[:, :, -1, 0] = 40.0
    first = attend(q, k, v, splits)
    cache = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
    for i in range(250):
        if i % 5 == 0:
            cache.zero_()
        again = attend(q, k, v, splits)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), f"repeat {i}"


@pytest.mark.parametrize("size", [64, 128])
def test_without_entropy_the_output_is_the_same(size: int) -> None:
    q, k, v = operands((2, 8, 8, 300, 1300, size), torch.bfloat16)
    for plan in PLANS[size]:
        outs = [q.new_full((2, 300, 8, size), torch.nan).transpose(1, 2) for _ in range(2)]
        entropies = [torch.full((2, 8, 300), torch.nan, device="cuda") for _ in range(2)]
        for out, entropy, asked in zip(outs, entropies, (True, False), strict=True):
            launch(plan, 1, q, k, v, None, out, entropy, 0.1, with_entropy=asked)
        assert torch.equal(*outs)
        assert entropies[0].isfinite().all()
        assert entropies[1].isnan().all()
