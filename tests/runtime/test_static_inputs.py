"""Every graph that is compiled tells Inductor which of its inputs are weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._functorch._aot_autograd import frontend_utils

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
    count = len(gm.graph.find_nodes(op="placeholder"))
    return frontend_utils._try_get_metadata_from_dynamo(gm, {}.keys(), count, [])[1]


def _paint(model: Any, labels: Tensor) -> None:
    torch._dynamo.reset()
    model.autoregressive_infer_cfg(labels)


@pytest.mark.parametrize("options", [{}, {"restoration": "bypass", "entropy_source": "last-full-layer"}])
def test_weights_are_marked_in_every_graph(
    class_var: Callable[..., Any], labels: Tensor, compiled: list[fx.GraphModule], options: dict[str, Any]
) -> None:
    model = class_var(keep_ratio=0.3, mode="max-autotune-no-cudagraphs", **options)
    weights = Counter(str(parameter.shape) for parameter in model.blocks[0].parameters())
    _paint(model, labels)
    _paint(model, labels)
    assert len(compiled) > 3
    for gm in compiled:
        inputs = gm.graph.find_nodes(op="placeholder")
        # Dynamo marks a cache that is held on a module as well.
        assert Counter(str(inputs[position].meta["val"].shape) for position in _static(gm)) >= weights
