"""Fixtures of the run-time tests: everything but Inductor's code generation is real.

Compiling C++ takes seconds a graph and has nothing to do with what is tested here (tests/e2e has it). A
model's graphs are compiled once for all options, so the models are shared by all tests that may.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import toprovar_compiler
from tests.runtime.recorder import Recorder
from tests.toy_generators import ClassVAR, TextVAR, make
from toprovar_compiler import session, variants
from toprovar_compiler.errors import UnsupportedModelError
from toprovar_compiler.scale_graphs import ScaleGraphs


@pytest.fixture(autouse=True)
def _graphs_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)


@pytest.fixture(autouse=True)
def _clean_counts() -> Iterator[None]:
    toprovar_compiler.reset()
    yield
    toprovar_compiler.reset()


@pytest.fixture(scope="session")
def _shared_models() -> dict[type, Any]:
    return {ClassVAR: make(ClassVAR), TextVAR: make(TextVAR, sides=(1, 2, 4, 8))}


def _lent(model: Any) -> Iterator[Callable[..., Any]]:
    yield lambda **options: toprovar_compiler.compile(model, **options)
    with contextlib.suppress(UnsupportedModelError):
        toprovar_compiler.restore(model)


@pytest.fixture
def class_var(_shared_models: dict[type, Any]) -> Iterator[Callable[..., Any]]:
    """Compiles the shared class-conditional toy with given options: 5 scales, 3 layers, 2 rows a sample."""
    yield from _lent(_shared_models[ClassVAR])


@pytest.fixture
def plain_class_var(_shared_models: dict[type, Any]) -> Any:
    """The shared class-conditional toy, not compiled; its graphs are there for any wrapper around it."""
    return _shared_models[ClassVAR]


@pytest.fixture
def text_var(_shared_models: dict[type, Any]) -> Iterator[Callable[..., Any]]:
    """The same for the toy without stated schedule and without guidance: scales of 1, 4, 16, 64 tokens."""
    yield from _lent(_shared_models[TextVAR])


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([1, 2])


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Records the scales of everything that is compiled with mode="reduce-overhead", on a CPU."""
    made = Recorder()
    monkeypatch.setattr(session, "ScaleGraphs", lambda: ScaleGraphs(made, "cpu"))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", made.new_step)
    return made
