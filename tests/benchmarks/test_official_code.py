"""The benchmarks of official code: what can be said of them without that code."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import official_code, official_infinity, official_var


def _infinity(code: Path) -> Any:
    return official_infinity.build(code, official_infinity.MODELS["2b"], "1M", "cpu")


def _var(code: Path) -> Any:
    return official_var.build(code, official_var.MODELS["d30"], "cpu")


@pytest.mark.parametrize(("build", "name"), [(_infinity, "Infinity"), (_var, "VAR")])
def test_a_folder_without_the_official_code_is_refused_by_name(build: Any, name: str, tmp_path: Path) -> None:
    before = list(sys.path)
    with pytest.raises(
        FileNotFoundError, match=f"checkout of github.com/FoundationVision/{name}, got {tmp_path}"
    ):
        build(tmp_path)
    assert sys.path == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize("name", ["official_infinity", "official_var"])
def test_it_says_that_it_needs_a_gpu(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--code", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "requires a GPU, got none" in done.stderr


def test_the_commit_of_a_checkout_and_of_a_copy(tmp_path: Path) -> None:
    assert official_code.commit(tmp_path) is None
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    found = official_code.commit(tmp_path)
    assert found is not None
    assert len(found) == 40
    (tmp_path / "inside").mkdir()
    assert official_code.commit(tmp_path / "inside") is None


@pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is not None, reason="the package itself is installed"
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_stands_for_flash_attn_computes_packed_attention(device: str) -> None:
    from benchmarks import flash_attn_operator
    from tests import packed_attention  # its operator, on the CPU

    assert packed_attention.NAME == flash_attn_operator.NAME
    if device == "cuda":
        flash_attn_operator.register()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    kv = torch.randn(7, 2, 3, 32, device=device, dtype=dtype)
    query = torch.randn(2, 5, 3, 32, device=device, dtype=dtype)
    begins_q, begins_k = (
        torch.tensor(begins, dtype=torch.int32, device=device) for begins in ([0, 5, 10], [0, 4, 7])
    )
    found = flash_attn_operator.flash_attn_varlen_kvpacked_func(
        query.reshape(10, 3, 32), kv, begins_q, begins_k, 5, 4
    )
    exact, plain = (
        torch.cat([_attend(query[i], kv[begins_k[i] : begins_k[i + 1]], kind) for i in range(2)])
        for kind in (torch.float64, dtype)
    )
    error, allowed = ((value.double() - exact).abs().max() for value in (found, plain))
    assert found.dtype == dtype
    assert error <= 2 * allowed


def _attend(query: Tensor, kv: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, H, D] over [S, 2, H, D], computed in ``dtype``."""
    heads = (value.to(dtype).transpose(0, 1) for value in (query, *kv.unbind(1)))
    return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(0, 1)
