"""What a generation must not depend on: batch, autocast, guidance, depth, and what ran before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.toy_generators import ClassVAR, make

pytestmark = pytest.mark.usefixtures("without_inductor")


@pytest.fixture(scope="module")
def model() -> Any:
    return make(ClassVAR, dtype=torch.float64)


@pytest.fixture
def pruned(model: Any) -> Iterator[Any]:
    yield toprovar_compiler.compile(model, keep_ratio=0.3)
    toprovar_compiler.restore(model)


def _kept() -> dict[str, Any]:
    data = toprovar_compiler.summary().to_dict()
    return {key: data[key] for key in ("generations", "tokens_computed", "tokens_total", "fallbacks")}


def test_pictures_of_a_batch_are_those_of_each_alone(pruned: Any, labels: Tensor) -> None:
    together = pruned.autoregressive_infer_cfg(labels)
    kept = toprovar_compiler.kept_tokens(pruned)
    for i in range(len(labels)):
        torch.testing.assert_close(together[i : i + 1], pruned.autoregressive_infer_cfg(labels[i : i + 1]))
        alone = toprovar_compiler.kept_tokens(pruned)
        assert all(torch.equal(kept[scale][i : i + 1], alone[scale]) for scale in kept)


def test_pictures_of_a_batch_follow_their_labels(pruned: Any, labels: Tensor) -> None:
    together = pruned.autoregressive_infer_cfg(labels)
    torch.testing.assert_close(pruned.autoregressive_infer_cfg(labels.flip(0)), together.flip(0))


@pytest.mark.parametrize("batches", [(1, 3, 2), (3, 1, 1), (2, 3, 2)], ids=str)
def test_batch_sizes_may_change_from_call_to_call(batches: tuple[int, ...], pruned: Any) -> None:
    for size in batches:
        pruned.autoregressive_infer_cfg(torch.arange(size))
    counts = _kept()
    assert counts["tokens_total"] == sum(batches) * 2 * 3 * (1 + 4 + 9 + 16 + 36)
    assert counts["tokens_computed"] == sum(batches) * 2 * 3 * (1 + 4 + 3 + 5 + 11)
    assert counts["fallbacks"] == {}


@pytest.mark.parametrize("order", [(0.0, 1.5), (1.5, 0.0)], ids=["on after off", "off after on"])
def test_guidance_may_change_from_call_to_call(
    order: tuple[float, float], pruned: Any, model: Any, labels: Tensor
) -> None:
    pruned.autoregressive_infer_cfg(labels, cfg=order[0])
    second = pruned.autoregressive_infer_cfg(labels, cfg=order[1])
    afresh = toprovar_compiler.compile(model, keep_ratio=0.3).autoregressive_infer_cfg(labels, cfg=order[1])
    assert torch.equal(second, afresh)
    assert _kept()["fallbacks"] == {}


def test_rows_of_one_sample_share_their_tokens(pruned: Any, labels: Tensor) -> None:
    """Six rows, three samples: the keys that the conditional rows lack are those that the others lack."""
    grown: list[Tensor] = []
    attention = pruned.blocks[0].attn
    original = attention.kv_caching

    def note(enable: bool) -> None:
        if not enable:
            grown.append(attention.cached_k)
        original(enable)

    attention.kv_caching = note
    try:
        pruned.autoregressive_infer_cfg(labels)
    finally:
        del attention.kv_caching
    (keys,) = grown
    assert keys.shape[0] == 2 * len(labels)
    assert keys.shape[2] == 1 + 4 + 3 + 5 + 11, "keys of dropped tokens are absent"


def test_a_generation_that_failed_leaves_nothing_behind(
    pruned: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = pruned.autoregressive_infer_cfg(labels)
    book = pruned.vae_proxy[0]
    add, sides = book.add, (2, 4)

    def fail_at(side_of_failure: int) -> Any:
        def failing(f_hat: Tensor, idx: Tensor, side: int) -> Tensor:
            if side == side_of_failure:
                raise KeyboardInterrupt
            return add(f_hat, idx, side)

        return failing

    for side in sides:
        monkeypatch.setattr(book, "add", fail_at(side))
        with pytest.raises(KeyboardInterrupt):
            pruned.autoregressive_infer_cfg(labels)
        monkeypatch.setattr(book, "add", add)
        assert torch.equal(pruned.autoregressive_infer_cfg(labels), picture)


def test_a_generation_that_failed_within_a_block_leaves_nothing_behind(pruned: Any, labels: Tensor) -> None:
    picture = pruned.autoregressive_infer_cfg(labels)

    def fail(*arguments: Any) -> None:
        raise RuntimeError("no memory left")

    hook = pruned.head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        pruned.autoregressive_infer_cfg(labels)
    hook.remove()
    assert torch.equal(pruned.autoregressive_infer_cfg(labels), picture)


def _graphs(depth: int, labels: Tensor) -> int:
    model = toprovar_compiler.compile(make(ClassVAR, depth=depth), keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    return toprovar_compiler.summary(model).to_dict()["graphs"]


def test_the_number_of_graphs_does_not_depend_on_depth(labels: Tensor) -> None:
    assert _graphs(2, labels) == _graphs(5, labels)


def test_the_number_of_graphs_does_not_depend_on_the_number_of_scales(labels: Tensor) -> None:
    graphs = []
    for sides in ((1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7)):
        model = toprovar_compiler.compile(
            make(ClassVAR, depth=2, patch_nums=sides), keep_ratio=0.3, start_scale=2
        )
        model.autoregressive_infer_cfg(labels)
        graphs.append(toprovar_compiler.summary(model).to_dict()["graphs"])
    assert graphs[0] == graphs[1]


class _Noting:
    """Notes the dtype that leaves the blocks."""

    def __init__(self, model: Any) -> None:
        self.dtypes: set[torch.dtype] = set()
        model.blocks[-1].register_forward_hook(lambda module, arguments, out: self.dtypes.add(out.dtype))


def test_autocast_prunes_and_keeps_the_dtypes_that_eager_has(labels: Tensor) -> None:
    model, plain = make(ClassVAR), make(ClassVAR)
    notes = _Noting(model), _Noting(plain)
    toprovar_compiler.compile(model, keep_ratio=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        model.autoregressive_infer_cfg(labels)
        plain.autoregressive_infer_cfg(labels)
    assert notes[0].dtypes == notes[1].dtypes
    assert _kept()["tokens_computed"] == len(labels) * 2 * 3 * (1 + 4 + 3 + 5 + 11)
    assert _kept()["fallbacks"] == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_prune(dtype: torch.dtype, labels: Tensor) -> None:
    model = toprovar_compiler.compile(make(ClassVAR, depth=2, dtype=dtype), keep_ratio=0.3)
    assert model.autoregressive_infer_cfg(labels).dtype == dtype
    assert _kept()["tokens_computed"] == len(labels) * 2 * 2 * (1 + 4 + 3 + 5 + 11)
    assert _kept()["fallbacks"] == {}
