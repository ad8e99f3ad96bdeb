"""``mode`` reaches Inductor for every graph, graphs of modes are kept apart, and generations are marked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from toprovar_compiler import variants
from toprovar_compiler.errors import OptionError

GRAPHS = {"triton.cudagraphs": True}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Inductor's configuration was changed by, graph after graph."""
    given: list[dict[str, Any]] = []

    def keep(gm: Any, inputs: object, config_patches: dict[str, Any]) -> Any:
        given.append(config_patches)
        return gm.forward

    monkeypatch.setattr(variants, "compile_fx", keep)
    return given


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each beginning of a step that Inductor's CUDA graphs were told of."""
    told: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(None))
    return told


def test_every_graph_is_compiled_in_the_mode(
    class_var: Callable[..., Any], labels: Tensor, settings: list[dict[str, Any]], marks: list[None]
) -> None:
    plain = class_var(keep_ratio=0.3).autoregressive_infer_cfg(labels)
    assert not marks
    settings.clear()
    model = class_var(keep_ratio=0.3, mode="reduce-overhead")
    generations = [model.autoregressive_infer_cfg(labels) for _ in range(3)]
    assert len(settings) >= 3
    assert not any(settings), "CUDA graphs are of whole scales, which are no matter of Inductor's settings"
    assert len(marks) == 3
    assert torch.equal(generations[0], plain)


def test_torch_compile_hands_its_mode_on(
    plain_class_var: Any, labels: Tensor, settings: list[dict[str, Any]]
) -> None:
    fast = torch.compile(plain_class_var, backend="toprovar", mode="max-autotune")
    fast.autoregressive_infer_cfg(labels)
    assert fast.compilation.session.options.mode == "max-autotune"
    assert settings
    assert all(given["max_autotune"] and "triton.cudagraphs" not in given for given in settings)
    assert toprovar_compiler.summary(fast).to_dict()["generations"] == 1


def test_a_function_is_compiled_in_the_mode(settings: list[dict[str, Any]]) -> None:
    def attend(x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    fast = torch.compile(attend, backend="toprovar", options={"mode": "max-autotune-no-cudagraphs"})
    fast(torch.randn(1, 2, 4, 8))
    assert settings
    assert all(given["max_autotune"] for given in settings)


def test_inductor_records_graphs_that_are_no_block(settings: list[dict[str, Any]]) -> None:
    fast = torch.compile(torch.sin, backend="toprovar", options={"mode": "reduce-overhead"})
    with pytest.warns(UserWarning, match="attention"):
        fast(torch.randn(3))
    assert settings == [GRAPHS]


def test_an_unknown_mode_is_refused(class_var: Callable[..., Any]) -> None:
    with pytest.raises(OptionError, match=r"mode requires one of 'default', .*got 'fast'"):
        class_var(mode="fast")
