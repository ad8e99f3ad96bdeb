"""Policies are checked for what they compute: graphs run op by op, in float64, on models that tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import toprovar_compiler
from tests.policies.calibrations import calibration
from tests.toy_generators import ClassVAR, make
from toprovar_compiler import variants
from toprovar_compiler.errors import UnsupportedModelError
from toprovar_compiler.policies.artifacts import fingerprint
from toprovar_compiler.policies.skipvar_decisions import Decisions
from toprovar_compiler.policies.skipvar_fit import constant

Save = Callable[..., str]


@pytest.fixture(autouse=True)
def _graphs_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)


@pytest.fixture(autouse=True)
def _clean_counts() -> Iterator[None]:
    toprovar_compiler.reset()
    yield
    toprovar_compiler.reset()


@pytest.fixture(scope="package")
def model() -> Any:
    """5 scales of 1 to 36 tokens, 3 layers, 2 rows a sample; compiled anew by each test, graphs are kept."""
    return make(ClassVAR, dtype=torch.float64)


@pytest.fixture
def under(model: Any) -> Iterator[Callable[..., Any]]:
    """Compiles the model in place with given options."""
    yield lambda **options: toprovar_compiler.compile(model, **options)
    with contextlib.suppress(UnsupportedModelError):
        toprovar_compiler.restore(model)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([3, 1, 4])


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a decision file for a model; by default it leaves everything in place."""

    def write(model: Any, **changes: Any) -> str:
        values: dict[str, Any] = {
            "model": type(model).__name__,
            "fingerprint": fingerprint(model),
            "decision_scale": 1,
            "scale_weights": (1.0, 0.5, 0.25, 2.0, 1.0),
            "threshold": 0.84,
            "samples": 1,
            "skip": constant(0),
            "replace": constant(0),
        }
        path = tmp_path / "decisions.json"
        Decisions(**{**values, **changes}).save(path)
        return str(path)

    return write


@pytest.fixture
def calibration_file(model: Any, tmp_path: Path) -> Path:
    """The shared model's calibration, with random gates."""
    path = tmp_path / "c.json"
    calibration(model).save(path)
    return path
