"""The demo on a small model: files, proof of effect, and figures that add up."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tests.painters import small
from toprovar_compiler import demo_contenders, variants
from toprovar_compiler.cli import EXIT_OK, main
from toprovar_compiler.demo_contenders import Contender, make_contenders, psnr, speedup

PROMPTS = ("a cat", "two apples")


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but Inductor's code generation, which takes seconds a graph."""
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)
    monkeypatch.setattr(demo_contenders, "PLAIN_BACKEND", "eager")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small(torch.device("cpu"), torch.float32)


def run(folder: Path, *more: str) -> dict[str, Any]:
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    command = ["demo", "--model", "tests.painters:small", "--device", "cpu", *prompts, "--out", str(folder)]
    assert main([*command, *more]) == EXIT_OK
    record: dict[str, Any] = json.loads((folder / "demo.json").read_text())
    return record


def test_demo_proves_its_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(tmp_path, "--start-scale", "2", "--keep-ratio", "0.5")
    summary = record["summary"]
    assert summary["generations"] == len(PROMPTS) + 1
    assert summary["tokens_computed"] < summary["tokens_total"]
    assert summary["fallbacks"] == {}
    assert record["tokens_skipped"] == 1 - summary["tokens_computed"] / summary["tokens_total"]
    assert 0 < record["flops_saved"] < 1
    assert record["options"] == {"start_scale": 2, "keep_ratio": 0.5}
    assert record["environment"]["torch"] == torch.__version__
    assert all(len(times["warm_s"]) == len(PROMPTS) for times in record["times"].values())
    output = capsys.readouterr()
    assert f"transformer FLOPs saved: {100 * record['flops_saved']:.1f} %" in output.out
    assert "[12/12] toprovar: two apples" in output.err
    # two pictures and the two scales that were pruned, in two rows
    width, height = Image.open(tmp_path / "demo.png").size
    assert width // 256 == 4
    assert height // 256 == len(PROMPTS)


def test_dense_demo_skips_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(tmp_path, "--policy", "dense")
    assert record["tokens_skipped"] == record["flops_saved"] == 0
    assert record["psnr_db"]["toprovar to toprovar dense"] is None
    assert "nothing was skipped" in capsys.readouterr().out


def test_contenders_share_weights_and_nothing_else(model: nn.Module) -> None:
    contenders = make_contenders(model, {"keep_ratio": 0.5, "start_scale": 2})
    models = [contender.model for contender in contenders]
    assert len({id(m) for m in models}) == len(models)
    for other in models[1:]:
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert ours is theirs
    compiled = [m.blocks[0]._compiled_call_impl is not None for m in models]
    assert compiled == [False, True, True, True]


def test_speedup_compares_the_same_prompt() -> None:
    slow = Contender("slow", nn.Identity(), warm_s=[4.0, 9.0, 2.0])
    fast = Contender("fast", nn.Identity(), warm_s=[2.0, 3.0, 2.0])
    assert speedup(slow, fast) == statistics.median([2.0, 3.0, 1.0])


def test_psnr() -> None:
    black = torch.zeros(3, 2, 2)
    assert psnr([black], [black]) is None
    assert psnr([black + 0.1], [black]) == pytest.approx(20.0)
