"""Runs of ``toprovar evaluate`` on a small model; everything but Inductor's code generation is real."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import toprovar_compiler
from tests.conftest import THREADS
from toprovar_compiler import demo_contenders, variants
from toprovar_compiler.cli import EXIT_OK, main

SMALL = ["--model", "tests.painters:small", "--device", "cpu", "--start-scale", "2"]
JUDGED = [*SMALL, "--suite", "tests.evaluation.blobs:load"]

Results = dict[str, Any]
Run = Callable[..., Results]


def command(out: Path, *more: str) -> list[str]:
    """Three prompts in batches of two under two policies and the dense one, judged and not timed."""
    defaults = {"--policy": "toprovar,inverted", "--prompts": "3", "--batch": "2", "--timed": "0"}
    options = {**defaults, **dict(zip(more[::2], more[1::2], strict=True))}
    return ["evaluate", *JUDGED, *(part for pair in options.items() for part in pair), "--out", str(out)]


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@contextlib.contextmanager
def new_process() -> Iterator[None]:
    """Inside, as if nothing had been compiled yet; graphs run op by op, on one thread.

    Several processes are compared with this, and two threads in each of them would crowd two cores.
    """
    torch._dynamo.reset()
    toprovar_compiler.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)
        patch.setattr(demo_contenders, "PLAIN_BACKEND", "eager")
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def run() -> Run:
    """Evaluates into a folder, as a new process would."""

    def evaluate(out: Path, *more: str, status: int = EXIT_OK) -> Results:
        with new_process():
            assert main(command(out, *more)) == status
        found: Results = json.loads((out / "results.json").read_text())
        return found

    return evaluate


@pytest.fixture(scope="session")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """A run that nothing interrupted: its folder and results; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder)
