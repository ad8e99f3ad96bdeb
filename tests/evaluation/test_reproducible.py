"""Kernels that no clock has chosen, and settings as they were afterwards."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils import deterministic

from toprovar_compiler.evaluation.reproducible import reproducible


def _settings() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
        torch._inductor.config.deterministic,
    )


def test_inductor_times_no_kernels_inside_however_much_is_compiled() -> None:
    seen: list[bool] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        seen.append(torch._inductor.config.deterministic)
        return gm

    torch._dynamo.reset()
    doubled = torch.compile(lambda x: x * 2, backend=backend, dynamic=False)
    with reproducible():
        for size in (2, 3, 4):
            doubled(torch.ones(size))
            # A variant is compiled outside Dynamo, after it has put its settings back.
            seen.append(torch._inductor.config.deterministic)
    assert seen == [True] * 6


def _fail_inside() -> None:
    with reproducible():
        assert _settings() == (True, True, False, True)
        raise ZeroDivisionError


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("warn_only", [False, True])
def test_settings_come_back_also_after_an_error(enabled: bool, warn_only: bool) -> None:
    try:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        before = _settings()
        with pytest.raises(ZeroDivisionError):
            _fail_inside()
        assert _settings() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_workspace_that_was_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with reproducible():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
