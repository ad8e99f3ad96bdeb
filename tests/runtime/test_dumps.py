"""What ``TOPROVAR_DUMP_DIR`` shows of a generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toprovar_compiler import variants
from toprovar_compiler.passes.manager import DUMP_VARIABLE

BYPASS = {"keep_ratio": 0.3, "restoration": "bypass", "entropy_source": "last-full-layer"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"policy": "dense"}, {"dense"}),
        ({"policy": "fastvar", "keep_ratio": 0.3}, {"dense", "pruned-keys-absent"}),
        (BYPASS, {"dense", "dense-entropy", "pruned-keys-absent-entropy-gate-of-2-rows"}),
    ],
)
def test_dumps_are_named_by_what_the_variant_is(
    class_var: Callable[..., Any],
    labels: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: dict[str, Any],
    wanted: set[str],
) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv(DUMP_VARIABLE, str(tmp_path))
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)
    class_var(**options).autoregressive_infer_cfg(labels)
    stages = {path.stem.split("-", 1)[1] for path in tmp_path.iterdir()}
    captured = {stage.removesuffix("-captured") for stage in stages if stage.endswith("-captured")}
    assert captured == {"typed", *wanted}
