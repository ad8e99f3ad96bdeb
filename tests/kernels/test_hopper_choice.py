"""Which calls take the Hopper kernel, and what happens where it cannot run; needs no GPU."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from toprovar_compiler.kernels import hopper_attention
from toprovar_compiler.kernels.hopper_attention import (
    Program,
    attend_on_hopper,
    choose_plan,
    describable,
    descriptor,
    hopper_shortfall,
    hopper_unavailable,
    trial,
)
from toprovar_compiler.kernels.hopper_plans import BIASED_PLANS, MOST_SPLITS, PLANS, choose

PROCESSORS = 132
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def _on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose as on an H100, on whatever device the operands are."""
    monkeypatch.setattr(hopper_attention, "hopper_unavailable", lambda device: None)
    monkeypatch.setattr(hopper_attention, "_processors", lambda index: PROCESSORS)
    monkeypatch.setattr(hopper_attention, "trial", lambda *_: None)


def operands(
    heads: int, queries: int, keys: int, size: int, dtype: torch.dtype = torch.bfloat16, kv_heads: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v `[2, H, N, D]` as models have them: transposed views of `[2, N, H, D]`."""
    lengths = ((heads, queries), (kv_heads or heads, keys), (kv_heads or heads, keys))
    q, k, v = (torch.zeros(2, n, h, size, dtype=dtype).transpose(1, 2) for h, n in lengths)
    return q, k, v


@pytest.mark.usefixtures("_on_hopper")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [64, 128])
def test_the_first_plan_that_fills_the_gpu(size: int, dtype: torch.dtype) -> None:
    first, last = PLANS[size]
    assert choose_plan(*operands(16, 4096, 10521, size, dtype)) == (first, 1)
    assert choose_plan(*operands(16, 192, 255, size, dtype)) == (last, 1)
    assert choose_plan(*operands(16, 1024, 521, size, dtype, kv_heads=4)) == (first, 1)


@pytest.mark.usefixtures("_on_hopper")
@pytest.mark.parametrize(
    ("why", "call"),
    [
        ("few queries", operands(16, 31, 4096, 64)),
        ("fewer keys than a tile", operands(16, 1024, 63, 64)),
        ("head size", operands(4, 1024, 1024, 80)),
        ("dtype", operands(4, 1024, 1024, 64, torch.float32)),
        ("value size", (*operands(4, 1024, 1024, 64)[:2], operands(4, 1024, 1024, 128)[2])),
        ("address", tuple(x[..., 4:68] for x in operands(4, 1024, 1024, 72))),
        ("last stride", tuple(x[..., ::2] for x in operands(4, 1024, 1024, 128))),
        ("row stride", tuple(x[..., :64] for x in operands(1, 1024, 1024, 68))),
        ("expanded batch", tuple(x[:1].expand_as(x) for x in operands(4, 1024, 1024, 64))),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_the_rest_is_for_the_portable_kernel(why: str, call: tuple[Tensor, Tensor, Tensor]) -> None:
    assert choose_plan(*call) is None, why


@pytest.mark.parametrize("size", list(PLANS))
@pytest.mark.parametrize("heads", [1, 2, 8, 32, 60, 500])
@pytest.mark.parametrize("queries", [1, 63, 128, 300, 1024, 4097])
@pytest.mark.parametrize("keys", [1, 127, 1024, 10521, 1 << 20])
def test_parts_fill_the_gpu_and_no_more(keys: int, queries: int, heads: int, size: int) -> None:
    chosen = choose(heads, queries, keys, size, PROCESSORS)
    if chosen is None:
        return
    plan, splits = chosen
    assert 1 <= splits <= MOST_SPLITS
    # Each part has a tile at least, which the kernel relies on.
    assert keys // splits >= plan.keys
    programs = math.ceil(queries / (64 * plan.warpgroups)) * heads
    assert splits == 1 or programs * splits <= plan.resident * PROCESSORS


@pytest.mark.parametrize(
    ("heads", "queries", "keys", "size", "fastest"),
    [
        (32, 128, 1024, 128, {1, 2}),
        (32, 128, 10521, 128, {2, 3, 4}),
        (32, 256, 521, 128, {1}),
        (32, 256, 10521, 128, {2}),
        (8, 64, 530, 64, {1}),
        (8, 64, 2130, 64, {4, 5, 6, 7, 8}),
        (8, 576, 1106, 64, {1}),
        (8, 307, 16384, 64, {5, 6}),
        (32, 512, 10521, 128, {1}),
    ],
)
def test_parts_are_those_that_an_h100_was_fastest_with(
    heads: int, queries: int, keys: int, size: int, fastest: set[int]
) -> None:
    """Within a few percent of the fastest, by `python -m benchmarks.attention_splits`."""
    chosen = choose(heads, queries, keys, size, PROCESSORS)
    assert chosen is not None
    assert chosen[1] in fastest


@pytest.mark.usefixtures("_on_hopper")
@pytest.mark.parametrize(
    ("why", "bias"),
    [
        (None, torch.zeros(1024, 2048, dtype=torch.bool)),
        (None, torch.zeros(2048, dtype=torch.bfloat16)),
        (None, torch.zeros(2, 1, 1, 2048)),
        (None, torch.zeros(16, 1, 2048, dtype=torch.float16)),
        (None, torch.zeros(2, 16, 1024, 3000)[..., 5:2053]),
        (None, torch.empty_strided((1, 1, 1024, 2048), (1 << 40, 1 << 40, 2048, 1), device="meta")),
        ("one value a query", torch.zeros(1024, 1)),
        ("keys apart", torch.zeros(2048, 1024).T),
        ("float64", torch.zeros(2048, dtype=torch.float64)),
        ("rows too far apart", torch.empty_strided((1024, 2048), (1 << 26, 1), device="meta")),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_which_biases_it_reads(why: str | None, bias: Tensor) -> None:
    chosen = choose_plan(*operands(16, 1024, 2048, 64), bias)
    assert chosen == ((BIASED_PLANS[64], 1) if why is None else None)


def test_layouts_that_the_copy_engine_takes() -> None:
    packed = torch.zeros(2, 5, 3, 4, 64, dtype=torch.float16)  # [B, L, (q, k, v), H, D]
    assert all(describable(x.transpose(1, 2)) for x in packed.unbind(2))
    # A dimension of length 1 has no stride to speak of.
    assert describable(torch.zeros(64 * 5 + 8, dtype=torch.float16).as_strided((1, 1, 5, 64), (3, 5, 64, 1)))
    assert not describable(torch.zeros(2, 4, 64, 5, dtype=torch.float16).transpose(2, 3))


def test_a_device_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GPU" in str(hopper_unavailable(CPU))
    with _capability(monkeypatch, (8, 0)):
        assert "got 8.0" in str(hopper_unavailable(CUDA))
    with _capability(monkeypatch, (9, 0)) as patch:
        patch.setattr(hopper_attention, "_kernels", _missing_gluon)
        assert "AttributeError: no warpgroup_mma" in str(hopper_unavailable(CUDA))


def test_only_a_hopper_gpu_falls_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel was not made for is no shortfall: other devices, head sizes and dtypes."""
    with _capability(monkeypatch, (8, 0)):
        assert hopper_shortfall(CUDA, 64, torch.bfloat16) is None
    with _capability(monkeypatch, (9, 0)) as patch:
        patch.setattr(hopper_attention, "_kernels", _missing_gluon)
        assert hopper_shortfall(CPU, 64, torch.bfloat16) is None
        assert hopper_shortfall(CUDA, 80, torch.bfloat16) is None
        assert hopper_shortfall(CUDA, 64, torch.float32) is None
        assert "no warpgroup_mma" in str(hopper_shortfall(CUDA, 64, torch.bfloat16))


def test_a_plan_that_fails_is_a_shortfall(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = PLANS[64][-1]
    with _capability(monkeypatch, (9, 0)) as patch:
        patch.setattr(hopper_attention, "_kernels", lambda: None)
        patch.setattr(hopper_attention, "trial", lambda index, program: "no" if program.plan == narrow else None)
        assert hopper_shortfall(CUDA, 64, torch.bfloat16) == "no"
        assert hopper_shortfall(CUDA, 128, torch.bfloat16) is None


@contextmanager
def _capability(monkeypatch: pytest.MonkeyPatch, found: tuple[int, int]) -> Iterator[pytest.MonkeyPatch]:
    """As on a GPU of that compute capability."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda index: found)
        hopper_attention._unsuited.cache_clear()
        yield patch
    hopper_attention._unsuited.cache_clear()


def _missing_gluon() -> None:
    raise AttributeError("no warpgroup_mma")


@pytest.fixture
def _tried_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trials launch nothing, on a GPU that is not there."""
    made: Any = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, dtype, device: made(*shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    hopper_attention.trial.cache_clear()
    yield
    hopper_attention.trial.cache_clear()


@pytest.mark.usefixtures("_tried_on_cpu")
def test_a_kernel_that_fails_says_so_once_and_is_not_launched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[object] = []

    def fail(*arguments: object) -> None:
        launches.append(arguments)
        raise RuntimeError("ptxas failed\nand said much more")

    monkeypatch.setattr(hopper_attention, "launch", fail)
    reason = "it did not compile or launch (ptxas failed)"
    program = Program(PLANS[64][0], 64, torch.bfloat16)
    with pytest.warns(UserWarning, match="the Hopper kernel is not used: .*ptxas failed"):
        assert trial(0, program) == reason
    assert trial(0, program) == reason
    assert len(launches) == 1


@pytest.mark.usefixtures("_tried_on_cpu")
@pytest.mark.parametrize("size", list(PLANS))
def test_a_trial_runs_the_plan_on_the_fewest_rows(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[tuple[Any, ...]] = []
    monkeypatch.setattr(hopper_attention, "launch", lambda *arguments: launches.append(arguments))
    for plan, split, dtype in product(PLANS[size], (False, True), (None, torch.bool, torch.float32)):
        assert trial(0, Program(plan, size, torch.float16, split, bias=dtype)) is None
        tried, splits, q, k, v, bias, out, entropy, scale, with_entropy = launches.pop()
        assert (tried, splits, scale, with_entropy) == (plan, 1 + split, 0.0, True)
        assert dtype is None or (bias.dtype, bias.shape) == (dtype, (q.shape[2], k.shape[2]))
        assert q.shape == k.shape == v.shape == out.shape == (1, 1, splits * max(plan.keys, 64), size)
        assert (out.dtype, entropy.dtype, entropy.shape) == (torch.float16, torch.float32, q.shape[:3])


@pytest.mark.usefixtures("_on_hopper")
def test_a_failed_trial_leaves_the_call_to_the_portable_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = operands(16, 256, 521, 64)
    launches: list[object] = []
    monkeypatch.setattr(hopper_attention, "launch", lambda *arguments: launches.append(arguments) or launches)
    out, entropy = torch.empty_like(q), torch.empty(q.shape[:3])
    assert attend_on_hopper(q, k, v, None, out, entropy, 0.125) is launches
    monkeypatch.setattr(hopper_attention, "trial", lambda *_: "it did not compile")
    assert attend_on_hopper(q, k, v, None, out, entropy, 0.125) is None
    assert len(launches) == 1


def test_descriptors_are_made_once_and_keep_no_memory() -> None:
    pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
    x = torch.zeros(1, 300, 4, 64, dtype=torch.bfloat16).transpose(1, 2)
    at = x.data_ptr()
    made = descriptor(x, 64)(at)
    assert descriptor(x.clone().copy_(x).set_(x), 64)(at) is made
    assert descriptor(x, 128)(at) is not made
    assert descriptor(x, 64)(at + 4096) is not made
    assert descriptor(x[:, :, 8:], 64)(at) is not made
    assert made.shape == [1, 4, 300, 64]
    assert made.strides == [64, 64, 256, 1]
    assert made.base.data_ptr() == x.data_ptr()
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


def test_cpu_calls_do_not_warn() -> None:
    q, k, v = operands(16, 256, 521, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attend_on_hopper(q, k, v, None, torch.empty_like(q), torch.empty(q.shape[:3]), 0.125) is None
