"""The console script: what it prints, where errors go, and which exit status they give."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch

from toprovar_compiler import cli, variants
from toprovar_compiler.cli import main
from toprovar_compiler.cli_arguments import given_options
from toprovar_compiler.cli_progress import Progress

SMALL = ["--model", "tests.painters:small", "--device", "cpu"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but Inductor's code generation, which takes seconds a graph."""
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("uncompiled")
def test_generate_writes_a_picture_per_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", *SMALL, "a cat", "Two apples!", "--out", str(tmp_path), "--start-scale", "2"]
    assert main([part.replace("!", "") for part in command]) == cli.EXIT_OK
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-a-cat.png", "2-two-apples.png"]
    printed = capsys.readouterr().out
    assert "skipped" in printed
    assert str(tmp_path / "2-two-apples.png") in printed


def test_pruning_options_reach_the_compiler() -> None:
    given = ["--keep-ratio", ".5,1", "--start-scale", "2", "--scale-threshold", ".4", "--strict"]
    parts = ["--entropy-source", "same-layer", "--restoration", "bypass", "--policy", "toprovar"]
    parts += ["--calibration", "c.json"]
    arguments = cli.build_parser().parse_args(["generate", "a cat", *given, *parts])
    assert given_options(arguments) == {
        "policy": "toprovar",
        "calibration": "c.json",
        "keep_ratio": [0.5, 1.0],
        "start_scale": 2,
        "scale_threshold": 0.4,
        "entropy_source": "same-layer",
        "restoration": "bypass",
        "strict": True,
    }
    assert given_options(cli.build_parser().parse_args(["generate", "a cat"])) == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "tests.painters"], "requires module:function, got 'tests.painters'"),
        (["--model", "no_such_package.a:load"], "requires the module 'no_such_package.a'"),
        (["--model", "tests.no_such:load"], "requires the module 'tests.no_such'"),
        (["--model", "tests.painters:absent"], "requires a function 'absent'"),
        (["--model", "tests.painters:NOT_A_FUNCTION"], "requires a function 'NOT_A_FUNCTION'"),
        (["--model", "tests.painters:failing"], "failed to load: weights file a.safetensors is missing"),
        (["--model", "tests.painters:no_generate"], "generate(prompts, seed=...), got Linear"),
        (["--model", "tests.painters:no_blocks"], "found none in _Logits"),
        ([*SMALL, "--device", "tpu"], "--device requires auto, cpu or cuda, got 'tpu'"),
        ([*SMALL, "--device", "cuda:99"], "--device cuda:99 requires a CUDA device"),
        ([*SMALL, "--keep-ratio", "0"], "keep_ratio requires a number in (0, 1], got 0"),
        ([*SMALL, "--keep-ratio", ".5,.5"], "keep_ratio requires one number per scale, got 2"),
        (
            [*SMALL, "--scale-threshold", "2"],
            "scale_threshold requires one number in [0, 1]",
        ),
        ([*SMALL, "--entropy-source", "same-layer"], "restoration='scale-exit' requires entropy_source="),
        ([*SMALL, "--start-scale", "4"], "start_scale requires a scale of the model's schedule"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a cat", *arguments]) == cli.EXIT_ERROR
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("toprovar: error: ")
    assert output.err.count("\n") == 1
    assert expected in output.err


def test_a_word_outside_the_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a zeppelin", *SMALL]) == cli.EXIT_ERROR
    assert "'zeppelin'" in capsys.readouterr().err


def test_a_model_that_gives_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.painters import no_blocks
    from toprovar_compiler.cli_model import paint
    from toprovar_compiler.errors import UnsupportedModelError

    model = no_blocks(torch.device("cpu"), torch.float32)
    with pytest.raises(
        UnsupportedModelError, match=r"requires to give pictures \[B, 3, H, W\], got \(1, 1\)"
    ):
        paint(model, ["a cat"], 0)


def test_traceback_raises() -> None:
    with pytest.raises(ValueError, match="keep_ratio"):
        main(["generate", "a cat", *SMALL, "--keep-ratio", "7", "--traceback"])


@pytest.mark.parametrize(
    "arguments", [[], ["paint"], ["generate"], ["generate", "a", "--keep-ratio", "half"]]
)
def test_misuse_shows_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == cli.EXIT_ERROR
    assert "usage: toprovar" in capsys.readouterr().err


def test_a_missing_dependency_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_model.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a cat", "--model", "my_model:load"]) == cli.EXIT_ERROR
    assert "requires the package 'a_package_that_nobody_has'" in capsys.readouterr().err


def test_an_interrupt_has_its_own_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**unused: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("toprovar_compiler.doctor.examine", interrupted)
    assert main(["doctor"]) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "toprovar: interrupted\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_log_is_a_line_per_step() -> None:
    stream = io.StringIO()
    with Progress(2, stream) as progress:
        progress.step("one")
        progress.step("two")
    assert stream.getvalue() == "[1/2] one\n[2/2] two\n"


def test_progress_on_a_terminal_is_a_bar() -> None:
    stream = _Terminal()
    with Progress(2, stream) as progress:
        progress.step("one")
        progress.step("two")
    assert "two" in stream.getvalue()
    assert "2/2" in stream.getvalue()
    assert "\r" in stream.getvalue()
