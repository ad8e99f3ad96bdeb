"""What can go wrong in ``toprovar calibrate``: where errors go, and which exit status they give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from toprovar_compiler.cli import main
from toprovar_compiler.cli_arguments import EXIT_ERROR

Command = Callable[..., list[str]]


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str], out: Path) -> tuple[list[str], str]:
    """The lines of progress and the one line of the error; nothing else is printed or written."""
    assert main(arguments) == EXIT_ERROR
    output = capsys.readouterr()
    *progress, error = output.err.splitlines()
    assert error.startswith("toprovar: error: ")
    assert output.out == ""
    assert not out.exists()
    return progress, error


@pytest.mark.parametrize(
    ("painter", "more", "expected"),
    [
        ("plain", ["--out", "/no/such/folder/c.json"], "--out requires a file in a folder that exists, got"),
        ("plain", ["--prompts", "3"], "--prompts 3 requires a suite"),
        ("plain", ["--prompts", "nowhere.txt"], "requires a number or a prompt file, got 'nowhere.txt'"),
        ("two_scales", [], "requires a model that states at least 3 scales, got (1, 16)"),
        ("unstated", [], "requires a model that states at least 3 scales, got None"),
        ("level", [], "requires a model whose scales grow, got (1, 16, 16)"),
        ("absent", [], "requires a function 'absent'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    painter: str,
    more: list[str],
    expected: str,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "c.json"
    progress, error = _error(command(painter, out, *more), capsys, out)
    assert progress == []
    assert expected in error


def test_an_empty_prompt_file(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.json"
    progress, error = _error(command("plain", out, prompts="empty.txt"), capsys, out)
    assert progress == []
    assert "empty.txt requires at least one prompt, got an empty file" in error


@pytest.mark.parametrize(
    ("painter", "more", "expected"),
    [
        ("plain", ["--target-speedup", "50"], "--target-speedup requires at most 6.2 for this model's"),
        (
            "mixing",
            [],
            "a model whose blocks give their attention's entropy at some scale, got none",
        ),
        (
            "failing",
            [],
            "requires a model that paints its prompts, got KeyError: 'no such word: abcd' (dense, with "
            "entropy, batch 1, first prompt 'abcd'); take out what it cannot paint, or mend it: --traceback",
        ),
        ("broken", [], "requires finite pictures, got NaN or infinity (dense, with entropy, batch 0, first"),
        ("stamps", [], "requires pictures that are large enough for SSIM, got (4, 4) pixels; let generate"),
        (
            "overstated",
            [],
            "runs the scales that it states, (1, 4, 16, 36, 64) tokens, got (4, 36, 81); mend its attribute",
        ),
        ("one_scale", [], "runs the scales that it states, (1, 4, 16, 36, 64) tokens, got (121,); mend its"),
    ],
)
def test_what_only_painting_shows_is_one_line_after_the_progress(
    painter: str,
    more: list[str],
    expected: str,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "c.json"
    progress, error = _error(command(painter, out, *more), capsys, out)
    assert progress
    assert all(line.startswith("[") for line in progress)
    assert expected in error


def test_a_file_that_was_there_survives_an_error(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.json"
    out.write_text("{}")
    assert main(command("failing", out)) == EXIT_ERROR
    assert "no such word" in capsys.readouterr().err
    assert out.read_text() == "{}"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--target-speedup", "2", "--min-ssim", "0.9"], "not allowed with argument"),
        (["--min-ssim", "0"], "--min-ssim: requires a number in (0, 1], got '0'"),
        (["--min-ssim", "1.01"], "--min-ssim: requires a number in (0, 1], got '1.01'"),
        (["--min-ssim", "nan"], "--min-ssim: requires a number, got 'nan'"),
        (["--target-speedup", "0.9"], "--target-speedup: requires a number of at least 1, got '0.9'"),
        (["--target-speedup", "inf"], "--target-speedup: requires a number, got 'inf'"),
        (["--target-speedup", "fast"], "--target-speedup: requires a number, got 'fast'"),
        (["--batch", "0"], "--batch: requires a whole number of at least 1, got '0'"),
    ],
)
def test_misuse_shows_the_usage_and_one_line(
    more: list[str],
    expected: str,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command("plain", tmp_path / "c.json", *more))
    assert stopped.value.code == EXIT_ERROR
    error = capsys.readouterr().err
    assert error.startswith("usage: toprovar calibrate")
    assert error.count("error: ") == 1
    assert expected in error.splitlines()[-1]
