"""Everything but Inductor's code generation is real; models are shared, so that graphs are captured once."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import toprovar_compiler
from toprovar_compiler import variants


@pytest.fixture(autouse=True, scope="module")
def _graphs_run_uncompiled() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "compile_fx", lambda gm, inputs: gm.forward)
        patch.setattr(sys, "path", list(sys.path))
        yield


@pytest.fixture(autouse=True)
def _clean_counts() -> Iterator[None]:
    toprovar_compiler.reset()
    yield
    toprovar_compiler.reset()
