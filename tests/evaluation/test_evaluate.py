"""Whole runs in one process: what they leave, and that they can be broken off and gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.evaluation.conftest import Results, Run, command, new_process
from toprovar_compiler import demo_contenders
from toprovar_compiler.cli import EXIT_INTERRUPTED, main
from toprovar_compiler.evaluation import painter
from toprovar_compiler.evaluation.store import Store

POLICIES = ("dense", "toprovar", "inverted")


def intervals(value: Any) -> Iterator[dict[str, Any]]:
    """All intervals in results."""
    if isinstance(value, dict):
        if "low" in value:
            yield value
        else:
            for part in value.values():
                yield from intervals(part)


def test_results_have_every_figure(finished: tuple[Path, Results]) -> None:
    _, results = finished
    assert tuple(results["policies"]) == POLICIES
    for name, figures in results["policies"].items():
        for metric in ("composition", "fid_checker", "fid_dense", "ssim", "flops_ratio"):
            assert figures[metric]["value"] is not None, (name, metric)
        assert set(figures["per_task"]) == {"bright", "dark"}
        assert figures["ms_ssim"]["reason"] == "requires pictures of at least 176 pixels a side"
        assert figures["speedup_vs_eager"]["reason"] == "not timed: --timed 0"
        assert figures["fallbacks"] == {}
    far = [results["policies"][name]["fid_dense"]["value"] for name in POLICIES]
    assert far[POLICIES.index("dense")] == pytest.approx(0, abs=1e-6)
    assert sum(value > 1e-3 for value in far) == len(POLICIES) - 1
    assert results["true_scenes"]["composition"]["value"] == 1
    assert results["run"]["suite"] == "blobs"
    assert results["environment"]["torch"]
    assert results["command"].startswith("toprovar")
    assert "commit" in results


def test_every_interval_holds_its_value(finished: tuple[Path, Results]) -> None:
    known = [figure for figure in intervals(finished[1]) if figure["value"] is not None]
    assert len(known) > 30
    for figure in known:
        low = figure["value"] if figure["low"] is None else figure["low"]
        high = figure["value"] if figure["high"] is None else figure["high"]
        # equal samples: the mean of equal numbers may differ from them in the last bit
        assert low <= figure["value"] * (1 + 1e-12)
        assert figure["value"] <= high * (1 + 1e-12)


def test_dense_is_its_own_measure(finished: tuple[Path, Results]) -> None:
    dense, pruned = (finished[1]["policies"][name] for name in ("dense", "toprovar"))
    assert dense["ssim"] == {"value": 1, "low": 1, "high": 1}
    assert dense["psnr"]["reason"] == "every picture equals the dense one"
    assert dense["flops_ratio"]["value"] == 1
    assert dense["composition_vs_dense"]["value"] == 0
    assert pruned["flops_ratio"]["value"] > 1.5
    assert pruned["ssim"]["value"] < 1
    shares = [region["share"]["value"] for region in pruned["regions"].values()]
    assert sum(shares) == pytest.approx(1)


def test_policies_paint_from_the_same_seeds(finished: tuple[Path, Results]) -> None:
    folder, _ = finished
    names = [sorted(path.name for path in (folder / "pictures" / policy).iterdir()) for policy in POLICIES]
    assert names[0] == ["00000-00.png", "00001-00.png", "00002-00.png"]
    assert names[0] == names[1] == names[2]


def test_table_and_sheet(finished: tuple[Path, Results]) -> None:
    folder, results = finished
    table = (folder / "results.md").read_text()
    ssim = results["policies"]["toprovar"]["ssim"]
    assert f"{ssim['value']:.4f} [{ssim['low']:.4f}, {ssim['high']:.4f}]" in table
    assert "| true scenes | 1.000 [1.000, 1.000] |" in table
    width, height = Image.open(folder / "sheet.png").size
    assert width // 192 == len(POLICIES)
    assert height // 192 == 3


def test_an_interrupted_run_goes_on_with_the_same_numbers(
    run: Run, finished: tuple[Path, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = []
    paint = painter.paint

    def paint_three(*arguments: Any) -> Any:
        if len(painted) == 3:
            raise KeyboardInterrupt
        painted.append(arguments)
        return paint(*arguments)

    with monkeypatch.context() as patch, new_process():
        patch.setattr(painter, "paint", paint_three)
        # a policy can join later, too
        assert main(command(tmp_path, "--policy", "toprovar")) == EXIT_INTERRUPTED
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").rglob("*.png")}
    assert len(kept) == 2 + 2 + 1  # the first batch of two policies, the dense one of the second
    assert run(tmp_path) == finished[1]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_nothing_is_painted_twice(
    run: Run, finished: tuple[Path, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished[0], tmp_path / "copy")
    monkeypatch.setattr(painter, "paint", None)
    assert run(tmp_path / "copy") == finished[1]


def test_pictures_are_reproducible_and_times_are_those_of_the_fastest_kernels(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    for module, stage in ((painter, "paint"), (demo_contenders, "paint")):
        original = getattr(module, stage)

        def spied(*arguments: Any, of: str = module.__name__, call: Any = original) -> Any:
            seen.append((of.rpartition(".")[2], torch.are_deterministic_algorithms_enabled()))
            return call(*arguments)

        monkeypatch.setattr(module, stage, spied)
    run(tmp_path, "--timed", "1", "--policy", "dense", "--prompts", "2")
    assert set(seen) == {("painter", True), ("demo_contenders", False)}


def test_latency_beside_quality(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = run(tmp_path, "--timed", "2", "--policy", "oracle", "--prompts", "2")
    turns = [json.loads(path.read_text()) for path in sorted((tmp_path / "times").iterdir())]
    assert [set(turn) for turn in turns] == [{"eager", "Inductor", "dense", "oracle"}] * 2
    ratios = sorted(turn["eager"] / turn["oracle"] for turn in turns)
    found = results["policies"]["oracle"]["speedup_vs_eager"]
    assert found["value"] == pytest.approx(sum(ratios) / 2)
    assert ratios[0] <= found["low"] <= found["high"] <= ratios[1]
    assert results["baselines"]["Inductor"]["latency_s"]["value"] > 0
    # what was timed once is not timed again
    monkeypatch.setattr(Store, "write_times", None)
    assert run(tmp_path, "--timed", "2", "--policy", "oracle", "--prompts", "2") == results


def test_a_model_without_a_suite_and_with_samples(run: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\n  two apples \n")
    out = tmp_path / "out"
    more = ("--suite", "none", "--prompts", str(prompts), "--policy", "toprovar", "--samples", "2")
    results = run(out, *more)
    figures = results["policies"]["toprovar"]
    for metric in ("composition", "per_task", "fid_checker", "fid_dense", "regions"):
        assert figures[metric]["value"] is None
        assert "pass --suite module:function" in figures[metric]["reason"]
    assert figures["ssim"]["value"] < 1
    assert results["true_scenes"] is None
    assert results["run"]["prompts"] == 2
    assert results["pictures"] == 4
    pictures = [path.read_bytes() for path in sorted((out / "pictures" / "dense").iterdir())]
    assert len(set(pictures)) == 4  # each sample has a seed of its own
