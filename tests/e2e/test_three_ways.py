"""The three ways to use toprovar, as the README has them, compiled for real."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler

OPTIONS = {"keep_ratio": 0.3, "start_scale": 2}


def _through_module(toy: Any, labels: Tensor) -> Tensor:
    model = torch.compile(toy, backend="toprovar", options=OPTIONS)
    return model.autoregressive_infer_cfg(labels)


def _through_method(toy: Any, labels: Tensor) -> Tensor:
    generate = torch.compile(toy.autoregressive_infer_cfg, backend="toprovar", options=OPTIONS)
    return generate(labels)


def _in_place(toy: Any, labels: Tensor) -> Tensor:
    toprovar_compiler.compile(toy, **OPTIONS)
    try:
        return toy.autoregressive_infer_cfg(labels)
    finally:
        toprovar_compiler.restore(toy)


WAYS = [_through_module, _through_method, _in_place]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_prunes(way: Any, toy: Any, labels: Tensor) -> None:
    way(toy, labels)
    data = toprovar_compiler.summary().to_dict()
    assert data["generations"] == 1
    assert data["tokens_computed"] < 0.4 * data["tokens_total"]
    assert data["flops_computed"] < 0.4 * data["flops_total"]
    assert data["fallbacks"] == {}


def test_all_ways_paint_the_same_picture(toy: Any, labels: Tensor) -> None:
    first, *others = [way(toy, labels) for way in WAYS]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_leaves_the_model_eager_afterwards(way: Any, toy: Any, labels: Tensor) -> None:
    eager = toy.autoregressive_infer_cfg(labels)
    way(toy, labels)
    assert torch.equal(toy.autoregressive_infer_cfg(labels), eager)


def test_a_second_picture_compiles_nothing(toy: Any, labels: Tensor) -> None:
    model = torch.compile(toy, backend="toprovar", options=OPTIONS)
    model.autoregressive_infer_cfg(labels)
    graphs = toprovar_compiler.summary(model).to_dict()["graphs"]
    model.autoregressive_infer_cfg(labels.flip(0))
    data = toprovar_compiler.summary(model).to_dict()
    assert (data["graphs"], data["recompiles"]) == (graphs, 0)


def test_the_same_call_paints_the_same_picture(toy: Any, labels: Tensor) -> None:
    model = torch.compile(toy, backend="toprovar", options=OPTIONS)
    assert torch.equal(model.autoregressive_infer_cfg(labels), model.autoregressive_infer_cfg(labels))


def test_inference_mode_paints_what_no_grad_paints(toy: Any, labels: Tensor) -> None:
    model = torch.compile(toy, backend="toprovar", options=OPTIONS)
    expected = model.autoregressive_infer_cfg(labels)
    with torch.inference_mode():
        picture = model.autoregressive_infer_cfg(labels)
    assert torch.equal(picture, expected)
    data = toprovar_compiler.summary(model).to_dict()
    assert data["tokens_computed"] < 0.4 * data["tokens_total"]


def test_dense_is_bitwise_plain_inductor(toy: Any, labels: Tensor) -> None:
    """The gate is off: the same graphs, compiled by the same compiler."""
    dense = torch.compile(toy, backend="toprovar", options={"policy": "dense"})
    picture = dense.autoregressive_infer_cfg(labels)
    for block in toy.blocks:
        block.compile(backend="inductor")
    try:
        assert torch.equal(picture, toy.autoregressive_infer_cfg(labels))
    finally:
        for block in toy.blocks:
            block._compiled_call_impl = None


def test_keeping_every_token_is_dense(toy: Any, labels: Tensor) -> None:
    """Attention then also gives its entropy, in another order of additions: equal up to float64 rounding."""
    everything = torch.compile(toy, backend="toprovar", options={"keep_ratio": 1.0})
    torch.testing.assert_close(
        everything.autoregressive_infer_cfg(labels), toy.autoregressive_infer_cfg(labels)
    )
