"""Every graph that is compiled tells Inductor which of its inputs are weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._functorch._aot_autograd import frontend_utils

import toprovar_compiler
from tests.toy_generators import ClassVAR, make
from toprovar_compiler import variants


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[fx.GraphModule]:
    """All graphs that reach Inductor."""
    graphs: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, inputs: object, config_patches: object) -> Any:
        graphs.append(gm)
        return gm.forward

    monkeypatch.setattr(variants, "compile_fx", keep)
    return graphs


def _static(gm: fx.GraphModule) -> list[int]:
    """The positions that torch's own reading of a graph finds."""
    held = dict([*gm.named_parameters(), *gm.named_buffers()])
    count = len(held) + len(gm.graph.find_nodes(op="placeholder"))
    return frontend_utils._try_get_metadata_from_dynamo(gm, held.keys(), count, [])[1]


@pytest.mark.parametrize("options", [{}, {"restoration": "bypass", "entropy_source": "last-full-layer"}])
def test_weights_are_marked_in_every_graph(
    labels: Tensor, compiled: list[fx.GraphModule], options: dict[str, Any]
) -> None:
    model: Any = toprovar_compiler.compile(make(ClassVAR), keep_ratio=0.3, **options)
    weights = Counter(str(parameter.shape) for parameter in model.blocks[0].parameters())
    for _ in range(2):
        model.autoregressive_infer_cfg(labels)
    assert len(compiled) >= 3
    for gm in compiled:
        inputs = gm.graph.find_nodes(op="placeholder")
        # Dynamo marks a cache that is held on a module as well.
        assert Counter(str(inputs[position].meta["val"].shape) for position in _static(gm)) >= weights


def test_a_graph_that_cannot_be_exported_keeps_the_sources_that_guard_it(
    compiled: list[fx.GraphModule],
) -> None:
    def grow(cache: Tensor, x: Tensor) -> Tensor:
        cache.add_(x)
        return torch.nn.functional.scaled_dot_product_attention(cache, x, x)

    x = torch.ones(1, 2, 4, 8)
    torch.compile(grow, backend="toprovar")(torch.zeros_like(x), x)
    (gm,) = compiled
    inputs = gm.graph.find_nodes(op="placeholder")
    assert len(inputs) == 2
    assert all(node._dynamo_source is not None for node in inputs)


def test_constants_of_the_code_are_inputs_of_their_own(compiled: list[fx.GraphModule]) -> None:
    weight, x = torch.nn.Parameter(torch.randn(8, 8)), torch.randn(1, 2, 4, 8)

    def attend(x: Tensor) -> Tensor:
        query = torch.nn.functional.linear(x, weight) * torch.tensor([1.0, 2.0]).repeat(4)
        return x + torch.nn.functional.scaled_dot_product_attention(query, x, x)

    with torch.no_grad():
        torch.compile(attend, backend="toprovar")(x)
    (gm,) = compiled
    held = dict(gm.named_buffers())
    inputs = gm.graph.find_nodes(op="placeholder")
    (at,) = [place for place, node in enumerate(inputs, len(held)) if node.meta["val"].shape == weight.shape]
    assert len(held) == 1
    assert _static(gm) == [0, at]
