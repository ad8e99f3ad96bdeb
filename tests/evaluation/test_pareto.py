"""The plot of several runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation.conftest import Results
from toprovar_compiler.cli import EXIT_ERROR, EXIT_OK, main


def copy_of(folder: Path, results: Results, change: dict[str, Any]) -> Path:
    folder.mkdir()
    changed = {**results, **change.get("results", {}), "run": {**results["run"], **change.get("run", {})}}
    (folder / "results.json").write_text(json.dumps(changed))
    return folder


def test_runs_in_one_plot(finished: tuple[Path, Results], tmp_path: Path) -> None:
    other = copy_of(tmp_path / "other", finished[1], {"run": {"options": {"keep_ratio": 0.5}}})
    out = tmp_path / "new" / "pareto.png"
    assert main(["pareto", str(finished[0]), str(other), "--out", str(out)]) == EXIT_OK
    width, height = Image.open(out).size
    # composition, FID and SSIM over FLOPs; nothing was timed
    assert height > 2 * width


def test_axes_that_the_runs_do_not_have_are_left_out(finished: tuple[Path, Results], tmp_path: Path) -> None:
    results = json.loads((finished[0] / "results.json").read_text())
    for figures in results["policies"].values():
        figures["composition"] = figures["fid_checker"] = {"value": None, "low": None, "high": None}
    folder = copy_of(tmp_path / "plain", results, {})
    out = tmp_path / "pareto.svg"
    assert main(["pareto", str(folder), "--out", str(out)]) == EXIT_OK
    drawn = out.read_text()
    assert drawn.count('id="axes_') == 1


@pytest.mark.parametrize(
    ("change", "out", "expected"),
    [
        ({}, "a.jpg", "--out requires a file that ends in .png, .svg, .pdf, got 'a.jpg'"),
        ({"run": {"weights": "0"}}, "a.png", "one plot requires runs of the same weights"),
        ({"run": {"prompts_digest": "0"}}, "a.png", "one plot requires runs of the same prompts_digest"),
        ({"results": {"format": "x"}}, "a.png", "requires format 'toprovar-evaluation' 1, got 'x' 1"),
    ],
)
def test_runs_that_do_not_belong_together(
    change: dict[str, Any],
    out: str,
    expected: str,
    finished: tuple[Path, Results],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = copy_of(tmp_path / "other", finished[1], change)
    assert main(["pareto", str(finished[0]), str(other), "--out", str(tmp_path / out)]) == EXIT_ERROR
    assert expected in capsys.readouterr().err


def test_an_unfinished_run(
    finished: tuple[Path, Results], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished[0] / "run.json", tmp_path)
    assert main(["pareto", str(tmp_path), "--out", str(tmp_path / "a.png")]) == EXIT_ERROR
    assert "requires a results.json, got none; let toprovar evaluate finish" in capsys.readouterr().err
