"""Fixtures of the run-time tests: everything but Inductor's code generation is real.

Compiling C++ takes seconds a graph and has nothing to do with what is tested here (tests/e2e has it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import toprovar_compiler
from tests.toy_generators import ClassVAR, make
from toprovar_compiler import variants

LABELS = torch.tensor([1, 2])


@pytest.fixture(autouse=True)
def _graphs_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs: gm.forward)


@pytest.fixture(autouse=True)
def _clean_counts() -> Iterator[None]:
    toprovar_compiler.reset()
    yield
    toprovar_compiler.reset()


@pytest.fixture
def class_var() -> Callable[..., Any]:
    """Makes a compiled class-conditional toy: ``class_var(keep_ratio=0.5)``."""

    def build(kind: type[ClassVAR] = ClassVAR, **options: Any) -> Any:
        return toprovar_compiler.compile(make(kind), **options)

    return build


@pytest.fixture
def labels() -> torch.Tensor:
    return LABELS
