"""Entropy is computed where the policy reads it, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.toy_generators import ClassVAR, make
from toprovar_compiler import variants
from toprovar_compiler.passes.attention import find_attention
from toprovar_compiler.passes.prune_tokens import INDEX
from toprovar_compiler.policies.base import Prune
from toprovar_compiler.policies.fastvar import FastvarPolicy

FUSED = torch.ops.toprovar.flash_attention_entropy.default


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs of the variants that are compiled."""
    graphs: list[Any] = []

    def keep(gm: Any, inputs: object, config_patches: object) -> Any:
        graphs.append(gm.graph)
        return gm.forward

    monkeypatch.setattr(variants, "compile_fx", keep)
    return graphs


def _paint(labels: Tensor, **options: Any) -> Tensor:
    model = toprovar_compiler.compile(make(ClassVAR), keep_ratio=0.3, **options)
    picture: Tensor = model.autoregressive_infer_cfg(labels)
    data = toprovar_compiler.summary(model).to_dict()
    assert data["tokens_computed"] < data["tokens_total"]
    return picture


def _is_pruned(graph: Any) -> bool:
    """Whether kept tokens are chosen outside, or by the graph's own gate."""
    gate = torch.ops.toprovar.entropy_gate.default
    return any(node.target in (INDEX, gate) for node in graph.nodes)


@pytest.mark.parametrize(
    "options",
    [{"policy": "fastvar"}, {"policy": "random"}, {"policy": "random", "restoration": "bypass"}],
    ids=["fastvar", "random", "gated"],
)
def test_policies_that_read_no_entropy_run_the_models_own_attention(
    options: dict[str, Any], labels: Tensor, compiled: list[Any]
) -> None:
    _paint(labels, **options)
    assert any(map(_is_pruned, compiled))
    for graph in compiled:
        assert find_attention(graph)
        assert not any(node.target is FUSED for node in graph.nodes)


@pytest.mark.parametrize("options", [{}, {"restoration": "bypass"}], ids=["chosen", "gated"])
def test_where_it_is_read_no_attention_is_without(
    options: dict[str, Any], labels: Tensor, compiled: list[Any]
) -> None:
    _paint(labels, **options)
    pruned = [graph for graph in compiled if _is_pruned(graph)]
    assert pruned
    for graph in pruned:
        assert not find_attention(graph)
        assert any(node.target is FUSED for node in graph.nodes)


def test_the_picture_is_that_with_entropy(labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    without = _paint(labels, policy="fastvar")
    decide: Any = FastvarPolicy.decide

    def asking(self: FastvarPolicy, *arguments: Any) -> Any:
        decision = decide(self, *arguments)
        asked = {"maps": True} if isinstance(decision, Prune) else {"entropy": True}
        return decision._replace(**asked)

    monkeypatch.setattr(FastvarPolicy, "decide", asking)
    torch.testing.assert_close(_paint(labels, policy="fastvar"), without)
