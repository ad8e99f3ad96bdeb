"""Flash Attention Entropy against the float64 oracle: the same sweep for every implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.kernels.oracle import check, quantised
from toprovar_compiler.kernels.ops import implementation

LENGTHS = (1, 2, 15, 16, 17, 97, 127, 128, 129)
HEAD_SIZES = (16, 59, 64, 80, 128, 256)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Runner:
    def __init__(self, name: str, device: str) -> None:
        self.call, self.name, self.device = implementation(name), name, device

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
    ) -> tuple[Tensor, Tensor]:
        out, entropy = self.call(q, k, v, bias, scale)
        assert out.shape == (*q.shape[:3], v.shape[3])
        assert out.transpose(1, 2).is_contiguous()
        assert out.dtype == q.dtype
        assert entropy.dtype == (torch.float64 if q.dtype == torch.float64 else torch.float32)
        return out, entropy

    def operands(
        self, batch: int, heads: int, queries: int, keys: int, size: int, dtype: torch.dtype, **kwargs: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        kv_heads = kwargs.get("kv_heads", heads)
        shapes = ((batch, heads, queries), (batch, kv_heads, keys), (batch, kv_heads, keys))
        sizes = (size, size, kwargs.get("value_size", size))
        made = [
            quantised(*shape, d, dtype=dtype, seed=i, device=self.device)
            for i, (shape, d) in enumerate(zip(shapes, sizes, strict=True))
        ]
        return made[0], made[1], made[2]


@pytest.fixture(
    params=["cpu", "cpu-native", "triton-interpreted", pytest.param("triton-gpu", marks=pytest.mark.gpu)],
    scope="module",
)
def run(request: pytest.FixtureRequest) -> Runner:
    if request.param in ("cpu", "cpu-native"):
        return Runner(request.param, "cpu")
    pytest.importorskip("triton")
    if request.param == "triton-interpreted" and torch.cuda.is_available():
        pytest.skip("Triton is compiled here; see triton-gpu")
    return Runner("triton", "cuda" if request.param == "triton-gpu" else "cpu")


def checked(
    run: Runner, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    scale = 1 / math.sqrt(q.shape[-1])
    out, entropy = run(q, k, v, bias, scale)
    check(out, entropy, q, k, v, bias, scale)
    return out, entropy


@pytest.mark.parametrize("queries", LENGTHS)
@pytest.mark.parametrize("keys", [1, 16, 97, 129])
def test_lengths(run: Runner, queries: int, keys: int) -> None:
    checked(run, *run.operands(2, 2, queries, keys, 64, torch.float32))


@pytest.mark.parametrize("size", HEAD_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_sizes_and_dtypes(run: Runner, size: int, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and (run.name, run.device) == ("triton", "cpu"):
        pytest.skip("Triton's interpreter multiplies bfloat16 matrices as if they were integers")
    checked(run, *run.operands(1, 2, 33, 97, size, dtype))


def test_float64(run: Runner) -> None:
    q, k, v = run.operands(1, 2, 17, 97, 64, torch.float64)
    checked(run, q, k, v)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_long_keys(run: Runner, batch: int) -> None:
    """Few queries over many keys: split keys on a GPU, several tiles of keys on CPU."""
    checked(run, *run.operands(batch, 2, 16, 1025, 64, torch.float32))


@pytest.mark.parametrize(("queries", "keys"), [(0, 7), (7, 0), (0, 0)])
def test_empty(run: Runner, queries: int, keys: int) -> None:
    out, entropy = run(*run.operands(2, 2, queries, keys, 16, torch.float32))
    assert not out.any()
    assert not entropy.any()


def test_grouped_queries_and_another_value_size(run: Runner) -> None:
    checked(run, *run.operands(2, 6, 17, 97, 64, torch.float32, kv_heads=2, value_size=80))


@pytest.mark.parametrize("layout", ["sliced", "permuted", "offset", "expanded"])
def test_strides(run: Runner, layout: str) -> None:
    q, k, v = run.operands(2, 2, 17, 65, 64, torch.float32)
    dense = run(q, k, v)

    def relaid(t: Tensor) -> Tensor:
        if layout == "sliced":
            wide = torch.full((*t.shape[:3], 2 * t.shape[3]), torch.nan, device=t.device, dtype=t.dtype)
            wide[..., ::2] = t
            return wide[..., ::2]
        if layout == "permuted":
            return t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
        if layout == "offset":
            flat = torch.full((t.numel() + 7,), torch.nan, device=t.device, dtype=t.dtype)
            flat[7:] = t.flatten()
            return flat[7:].view(t.shape)
        return t[:1].expand_as(t)

    if layout == "expanded":
        dense = run(*(t[:1].repeat(2, 1, 1, 1) for t in (q, k, v)))
    got = run(relaid(q), relaid(k), relaid(v))
    eps = torch.finfo(torch.float32).eps
    for a, b in zip(got, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=4 * eps, atol=4 * eps)


def test_outputs_are_written_everywhere(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.Tensor.new_empty

    def poisoned(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        fresh = made(self, *args, **kwargs)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    q, k, v = run.operands(2, 2, 33, 1025, 59, torch.float32)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    checked(run, q, k, v)


@pytest.mark.parametrize("kind", ["bool", "float", "block-causal", "row", "per-head"])
def test_masks(run: Runner, kind: str) -> None:
    q, k, v = run.operands(2, 2, 33, 97, 64, torch.float32)
    generator = torch.Generator().manual_seed(0)
    if kind == "bool":
        bias = torch.rand(2, 1, 33, 97, generator=generator) < 0.5
    elif kind == "block-causal":
        level_q, level_k = torch.arange(33) // 8, torch.arange(97) // 24
        bias = level_q[:, None] >= level_k[None]
    elif kind == "row":
        bias = torch.rand(1, 1, 1, 97, generator=generator) < 0.5
    else:
        shape = (2, 33, 97) if kind == "per-head" else (1, 1, 33, 97)
        bias = torch.randn(*shape, generator=generator)
        bias = bias.masked_fill(torch.rand(bias.shape, generator=generator) < 0.2, -math.inf)
    checked(run, q, k, v, bias.to(run.device))


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_fully_masked_rows_are_zero(run: Runner, kind: str) -> None:
    q, k, v = run.operands(1, 2, 17, 97, 64, torch.float32)
    keep = torch.ones(17, 97, dtype=torch.bool, device=run.device)
    keep[3] = keep[16] = False
    bias = keep if kind == "bool" else torch.zeros(17, 97, device=run.device).masked_fill(~keep, -math.inf)
    out, entropy = run(q, k, v, bias, 0.125)
    assert not out[:, :, [3, 16]].any()
    assert not entropy[:, :, [3, 16]].any()
    check(out, entropy, q, k, v, bias, 0.125)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_extreme_logits(run: Runner, offset: float) -> None:
    """The entropy does not see a common offset of the logits, however large."""
    q, k, v = run.operands(1, 2, 17, 97, 64, torch.float32)
    bias = torch.full((17, 97), offset, device=run.device)
    rounding = abs(offset) * torch.finfo(torch.float32).eps
    _, shifted = run(q, k, v, bias, 0.125)
    _, entropy = run(q, k, v, None, 0.125)
    # Adding the offset rounds each logit by half a unit; dH/ds is at most the spread of the logits.
    torch.testing.assert_close(shifted, entropy, rtol=0, atol=8 * rounding)


def test_late_maximum(run: Runner) -> None:
    """The largest logit comes last: what was summed before it must be rescaled, entropy included."""
    q, k, v = run.operands(1, 2, 17, 300, 64, torch.float32)
    bias = torch.linspace(0, 40, 300, device=run.device)[None].repeat(17, 1)
    checked(run, q, k, v, bias)


def test_uniform_rows_have_log_n(run: Runner) -> None:
    q, k, v = run.operands(1, 2, 17, 129, 64, torch.float32)
    out, entropy = run(q, k[:, :, :1].expand_as(k), v)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(129)), rtol=8 * eps, atol=0)
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out), rtol=0, atol=64 * eps)


def test_one_hot_rows_have_no_entropy(run: Runner) -> None:
    q, k, v = run.operands(1, 2, 17, 129, 64, torch.float32)
    bias = torch.zeros(17, 129, device=run.device)
    bias[:, 77] = 1e4
    out, entropy = run(q, k, v, bias, 0.125)
    assert float(entropy.abs().max()) == 0.0
    torch.testing.assert_close(out, v[:, :, 77:78].expand_as(out), rtol=0, atol=0)


def test_entropy_stays_in_range(run: Runner) -> None:
    for size in (1, 2, 16, 97):
        q, k, v = run.operands(2, 2, 17, size, 16, torch.float16)
        _, entropy = run(q, k, v)
        assert float(entropy.min()) >= 0.0
        assert float(entropy.max()) <= math.log(size) + 1e-6


def test_nan_stays_in_its_rows(run: Runner) -> None:
    q, k, v = run.operands(1, 2, 17, 97, 64, torch.float32)
    clean_out, clean_entropy = run(q, k, v)
    q = q.clone()
    q[0, 1, 5] = torch.nan
    out, entropy = run(q, k, v)
    assert out[0, 1, 5].isnan().all()
    assert entropy[0, 1, 5].isnan()
    others = torch.ones(1, 2, 17, dtype=torch.bool, device=run.device)
    others[0, 1, 5] = False
    torch.testing.assert_close(out[others], clean_out[others], rtol=0, atol=0)
    torch.testing.assert_close(entropy[others], clean_entropy[others], rtol=0, atol=0)


def test_order_of_keys_does_not_matter(run: Runner) -> None:
    q, k, v = run.operands(1, 2, 17, 300, 64, torch.float32)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).to(run.device)
    out, entropy = run(q, k[:, :, order], v[:, :, order])
    check(out, entropy, q, k, v, None, 1 / 8)
