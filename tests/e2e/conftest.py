"""Models that several end-to-end tests share: compiling is what these tests cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import toprovar_compiler
from tests.toy_generators import ClassVAR, make
from toprovar_compiler import variants


@pytest.fixture(autouse=True)
def _clean_counts() -> Iterator[None]:
    toprovar_compiler.reset()
    yield
    toprovar_compiler.reset()


@pytest.fixture
def without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run op by op: for tests of what they compute, not of the code that Inductor makes of them."""
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)


@pytest.fixture(scope="package")
def toy() -> Any:
    """A float64 toy whose graphs Inductor compiles once for all tests; each test wraps it anew."""
    return make(ClassVAR, dtype=torch.float64)


@pytest.fixture(scope="package")
def labels() -> torch.Tensor:
    return torch.tensor([3, 1, 4])
