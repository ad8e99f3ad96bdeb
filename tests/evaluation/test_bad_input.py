"""Bad input: one clear line, status 2, and finished work kept."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.conftest import JUDGED, SMALL, Results, Run, command
from toprovar_compiler.cli import EXIT_ERROR, EXIT_PROBLEM, main
from toprovar_compiler.evaluation import painter
from toprovar_compiler.evaluation.results import not_computed


@pytest.fixture(autouse=True)
def _nothing_is_painted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save by tests that ask for ``run`` themselves."""
    if "finished" in request.fixturenames:
        request.getfixturevalue("finished")
    elif "run" in request.fixturenames:
        return
    monkeypatch.setattr(painter, "paint", None)


def refused(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == EXIT_ERROR
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if not line.startswith("[")]
    assert output.out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("toprovar: error: ")
    assert expected in lines[0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--policy", "toprovar,fastest"], "policy requires one of 'toprovar', 'dense'"),
        (["--policy", ""], "policy requires one of"),
        (["--keep-ratio", "0"], "keep_ratio requires a number in (0, 1], got 0"),
        (["--start-scale", "4"], "start_scale requires a scale of the model's schedule"),
        (["--prompts", "0"], "--prompts requires at least 1 prompt, got 0"),
        (["--prompts", "-3"], "--prompts requires at least 1 prompt, got -3"),
        (["--prompts", "7"], "requires at most 6 prompts, got 7"),
        (["--prompts", "absent.txt"], "--prompts requires a number or a prompt file, got 'absent.txt'"),
        (["--suite", "tests.evaluation.blobs"], "--suite requires module:function"),
        (["--suite", "tests.evaluation.blobs:absent"], "pass another --suite module:function"),
        (["--suite", "tests.no_such:load"], "requires the module 'tests.no_such' of --suite"),
        (["--suite", "tests.painters:no_blocks"], "failed to load: no_blocks() missing"),
        (["--suite", "tests.evaluation.blobs:no_suite"], "got dict without name, fingerprint"),
        (["--suite", "none"], "--prompts 3 requires a suite to take the prompts from"),
    ],
)
def test_arguments(
    more: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(command(tmp_path / "out", *more), expected, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "requires at least one prompt, got an empty file"),
        (b"\n \n", "requires at least one prompt, got an empty file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "requires UTF-8 text, got other bytes at 0"),
        (b"a cat\nan \x00 apple\n", "requires text, got a control character in line 2"),
    ],
)
def test_prompt_files(
    content: bytes, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    refused(command(tmp_path / "out", "--prompts", str(path)), expected, capsys)


@pytest.mark.parametrize("option", ["--samples", "--batch", "--timed"])
def test_numbers(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(command(tmp_path, option, "-1"))
    assert "requires a whole number of at least" in capsys.readouterr().err


def test_a_prompt_that_the_model_refuses_comes_before_any_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\ngrey\n")
    refused(command(tmp_path / "out", "--prompts", str(path)), "has no word that the suite knows", capsys)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--seed", "1"], "require prompts_digest"),
        (["--batch", "1"], "require batch 2, got 1"),
        (["--keep-ratio", "0.5"], "require options {'start_scale': 2}, got {'keep_ratio': 0.5"),
        (["--dtype", "bfloat16"], "require dtype 'float32', got 'bfloat16'"),
        (["--model", "tests.evaluation.blobs:other_weights"], "require model 'tests.painters:small', got"),
        (["--suite", "tests.evaluation.blobs:stricter"], "require suite_fingerprint '1', got '2'"),
    ],
)
def test_a_folder_of_another_run(
    more: list[str],
    expected: str,
    finished: tuple[Path, Results],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused(command(out, *more), expected, capsys)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("toprovar", "0.0.1", "require toprovar '0.0.1', got"),
        ("weights", "00", "require weights '00', got"),
        ("format", "something", "requires format 'toprovar-evaluation', got another file"),
        ("format_version", 0, "require format_version 0, got 1"),
    ],
)
def test_a_folder_of_another_version(
    key: str,
    value: Any,
    expected: str,
    finished: tuple[Path, Results],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = json.loads((finished[0] / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, key: value}))
    refused(command(tmp_path), expected, capsys)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("run.json", b"{", "run.json requires JSON, got something else"),
        ("run.json", b"[]", "run.json requires a JSON object, got list"),
        ("units/dense/00001.json", b"", "00001.json requires JSON, got something else"),
        ("pictures/toprovar/00002-00.png", b"GIF", "00002-00.png is missing or damaged"),
        ("pictures/toprovar/00002-00.png", None, "00002-00.png is missing or damaged"),
    ],
)
def test_damaged_files(
    name: str,
    content: bytes | None,
    expected: str,
    finished: tuple[Path, Results],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(content)
    refused(command(out), expected, capsys)


def test_a_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    refused(command(tmp_path / "out"), "run.json cannot be written", capsys)


def test_a_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("toprovar_compiler.evaluation")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    refused(command(tmp_path), "SSIM and MS-SSIM require torchmetrics, got none; install it with", capsys)


def test_too_few_pictures_for_a_metric(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(tmp_path, "--prompts", "1", "--policy", "dense", status=EXIT_PROBLEM)
    assert results["policies"]["dense"]["composition"]["value"] is not None
    reasons = not_computed(results)
    assert reasons["fid_checker"] == "requires at least 2 pictures, got 1; pass more --prompts"
    assert set(reasons) == {
        "fid_checker", "fid_dense", "psnr", "ms_ssim", "error_bound", "latency_s", "speedup_vs_eager",
        "speedup_vs_inductor",
    }  # fmt: skip
    assert "fid_checker was not computed: requires at least 2 pictures" in capsys.readouterr().out


def test_a_number_of_prompts_without_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # another model than the embedded one has no suite of its own
    arguments = ["evaluate", *SMALL, "--prompts", "3", "--out", str(tmp_path)]
    refused(arguments, "requires a suite to take the prompts from, got none for this model", capsys)


def test_a_suite_that_answers_for_fewer_pictures(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command(tmp_path)]
    arguments[arguments.index(JUDGED[-1])] = "tests.evaluation.blobs:forgetful"
    refused(arguments, "requires one verdict per picture, got 1 for 2 pictures", capsys)
