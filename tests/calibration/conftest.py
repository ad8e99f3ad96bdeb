"""Everything but Inductor's code generation is real; models are shared, so that graphs are captured once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import toprovar_compiler
from tests.calibration.painters import BATCH, PROMPTS, SEED
from toprovar_compiler import variants


@pytest.fixture(autouse=True, scope="module")
def _graphs_run_uncompiled() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)
        patch.setattr(sys, "path", list(sys.path))
        yield


@pytest.fixture(autouse=True)
def _clean_counts() -> Iterator[None]:
    toprovar_compiler.reset()
    yield
    toprovar_compiler.reset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a file of prompts."""
    made = tmp_path_factory.mktemp("calibrate")
    (made / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    (made / "empty.txt").write_text(" \n\n")
    return made


@pytest.fixture(scope="module")
def command(folder: Path) -> Callable[..., list[str]]:
    """The command line: a painter, options that replace the usual ones, and an aim."""

    def build(painter: str, out: Path, *more: str, prompts: str = "prompts.txt") -> list[str]:
        usual = ["--prompts", str(folder / prompts), "--suite", "none", "--device", "cpu"]
        usual += ["--seed", str(SEED), "--batch", str(BATCH), "--out", str(out)]
        return ["calibrate", f"tests.calibration.painters:{painter}", *usual, *more]

    return build
