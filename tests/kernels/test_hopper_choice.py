"""Which calls take the Hopper kernel, and what happens where it cannot run; needs no GPU."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from torch import Tensor

from toprovar_compiler.kernels import hopper_attention
from toprovar_compiler.kernels.hopper_attention import (
    PLANS,
    attend_on_hopper,
    choose_plan,
    describable,
    descriptor,
    hopper_unavailable,
)

PROCESSORS = 132
CPU = torch.device("cpu")


@pytest.fixture
def _on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose as on an H100, on whatever device the operands are."""
    monkeypatch.setattr(hopper_attention, "hopper_unavailable", lambda device: None)
    monkeypatch.setattr(hopper_attention, "_processors", lambda index: PROCESSORS)
    monkeypatch.setattr(hopper_attention, "_failures", {})


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
def test_the_widest_plan_that_fills_the_gpu(size: int, dtype: torch.dtype) -> None:
    wide, narrow = PLANS[size]
    assert choose_plan(*operands(16, 4096, 10521, size, dtype)) == wide
    assert choose_plan(*operands(16, 256, 521, size, dtype)) == narrow
    assert choose_plan(*operands(16, 1024, 521, size, dtype, kv_heads=4)) == wide


@pytest.mark.usefixtures("_on_hopper")
@pytest.mark.parametrize(
    ("why", "call"),
    [
        ("few queries", operands(16, 127, 4096, 64)),
        ("fewer keys than a tile", operands(16, 1024, 127, 64)),
        ("few programs over many keys", operands(2, 128, 10521, 128)),
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


def test_layouts_that_the_copy_engine_takes() -> None:
    packed = torch.zeros(2, 5, 3, 4, 64, dtype=torch.float16)  # [B, L, (q, k, v), H, D]
    assert all(describable(x.transpose(1, 2)) for x in packed.unbind(2))
    # A dimension of length 1 has no stride to speak of.
    assert describable(torch.zeros(64 * 5 + 8, dtype=torch.float16).as_strided((1, 1, 5, 64), (3, 5, 64, 1)))
    assert not describable(torch.zeros(2, 4, 64, 5, dtype=torch.float16).transpose(2, 3))


def test_a_device_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(hopper_attention, "_failures", {})
    assert "GPU" in str(hopper_unavailable(CPU))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
        hopper_attention._unsuited.cache_clear()
        assert "got 8.0" in str(hopper_unavailable(cuda))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
        patch.setattr(hopper_attention, "_kernels", _missing_gluon)
        hopper_attention._unsuited.cache_clear()
        assert "AttributeError: no warpgroup_mma" in str(hopper_unavailable(cuda))
    hopper_attention._unsuited.cache_clear()


def _missing_gluon() -> None:
    raise AttributeError("no warpgroup_mma")


@pytest.mark.usefixtures("_on_hopper")
def test_a_kernel_that_fails_says_so_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = operands(16, 256, 521, 64)
    out, entropy = torch.empty_like(q), torch.empty(q.shape[:3])
    monkeypatch.setattr(hopper_attention, "_kernels", lambda: None)
    monkeypatch.setattr(hopper_attention, "_launch", _failing_launch)
    with pytest.warns(UserWarning, match="the Hopper kernel is not used: .*ptxas failed"):
        assert not attend_on_hopper(q, k, v, out, entropy, 0.125)
    assert hopper_attention._failures == {q.device.index: "it did not compile or launch (ptxas failed)"}


def _failing_launch(*_: object) -> None:
    raise RuntimeError("ptxas failed\nand said much more")


def test_a_device_whose_kernel_failed_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper_attention, "_failures", {0: "it did not compile or launch (ptxas failed)"})
    assert hopper_unavailable(torch.device("cuda", 0)) == "it did not compile or launch (ptxas failed)"


def test_descriptors_are_made_once_and_keep_no_memory() -> None:
    pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
    x = torch.zeros(1, 300, 4, 64, dtype=torch.bfloat16).transpose(1, 2)
    made = descriptor(x, 64)
    assert descriptor(x.clone().copy_(x).set_(x), 64) is made
    assert descriptor(x, 128) is not made
    assert descriptor(x[:, :, 8:], 64) is not made
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
        assert not attend_on_hopper(q, k, v, torch.empty_like(q), torch.empty(q.shape[:3]), 0.125)
