"""The benchmark of the official VAR code: what can be said of it without that code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.official_var import MODELS, build


def test_a_folder_without_the_official_code_is_refused_by_name(tmp_path: Path) -> None:
    before = list(sys.path)
    with pytest.raises(
        FileNotFoundError, match=f"checkout of github.com/FoundationVision/VAR, got {tmp_path}"
    ):
        build(tmp_path, MODELS["d30"], "cpu")
    assert sys.path == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_it_says_that_it_needs_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.official_var", "--code", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "requires a GPU, got none" in done.stderr
