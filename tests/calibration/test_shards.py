"""Several processes share a calibration: the file of one, and what a killed one finished is not lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.process_pairs import ROOT, free_port, start
from toprovar_compiler.calibration.budgets import RATIOS
from toprovar_compiler.calibration.parts import Parts
from toprovar_compiler.cli import EXIT_ERROR, EXIT_OK, main

WORKER = "tests.calibration.worker"
AIM = ("--target-speedup", "2.5")
BEFORE_GUIDANCE = 2 + 2 * len(RATIOS)  # entropies, dense, two scales at each ratio
STAGES = BEFORE_GUIDANCE + 2 + 1  # guidance that ends at two scales, the plan

Command = Callable[..., list[str]]
Content = dict[str, Any]


def _content(path: Path) -> Content:
    """All that a file says, but for the command line that made it."""
    content: Content = json.loads(path.read_text())
    del content["record"]["command"]
    return content


@pytest.fixture(scope="module")
def alone(command: Command, folder: Path) -> Content:
    """The file of one process that nothing interrupted."""
    assert main(command("plain", folder / "alone.json", *AIM)) == EXIT_OK
    assert not (folder / "alone.json.parts").exists(), "what it was for is done"
    return _content(folder / "alone.json")


def _launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes of torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    return subprocess.run(
        [*launch, str(free_port()), "-m", WORKER, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_processes_write_the_file_of_one(alone: Content, command: Command, tmp_path: Path) -> None:
    """Two batches and a short one: rank 0 has two of the three."""
    out = tmp_path / "c.json"
    done = _launch(*command("plain", out, *AIM))
    assert out.exists(), done.stderr
    assert done.stdout.count("wrote ") == 1
    assert _content(out) == alone
    assert list(tmp_path.iterdir()) == [out]


def test_a_killed_process_loses_nothing_that_was_finished(
    alone: Content, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, port = tmp_path / "c.json", free_port()
    both = [start(WORKER, rank, port, "--die-after", "5", *command("plain", out, *AIM)) for rank in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert both[1].returncode == -signal.SIGKILL, errors[1]
    assert both[0].returncode == EXIT_ERROR, errors[0]
    assert "requires all 2 processes to finish, but one ended early" in errors[0]
    assert not out.exists()
    folder = tmp_path / "c.json.parts"
    finished = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert len(finished) == 2 * BEFORE_GUIDANCE + 5, "rank 0 came to the wait before guidance ends"
    monkeypatch.setattr(Parts, "remove", lambda parts: None)
    assert main(command("plain", out, *AIM)) == EXIT_OK
    assert {path: path.read_bytes() for path in finished} == finished
    assert len(list(folder.rglob("*.safetensors"))) == 3 * STAGES
    assert _content(out) == alone


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--seed", "4"), "require seed 3, got 4; pass another --out, or remove that folder"),
        (("--batch", "3"), "require batch 2, got 3; pass another --out, or remove that folder"),
    ],
)
def test_parts_of_another_run_are_refused(
    change: tuple[str, str],
    expected: str,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "c.json"
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", interrupted)
        main(command("plain", out))
    capsys.readouterr()
    assert main(command("plain", out, *change)) == EXIT_ERROR
    error = capsys.readouterr().err
    assert f"{out}.parts {expected}" in error
    assert not out.exists()
