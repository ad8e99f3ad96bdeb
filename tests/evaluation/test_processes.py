"""Several processes share a run: the same numbers as one, and what a killed one finished is not lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.evaluation.conftest import Results, Run, command
from tests.process_pairs import ROOT, free_port, start
from toprovar_compiler.cli import EXIT_ERROR
from toprovar_compiler.errors import OptionError
from toprovar_compiler.evaluation.processes import Processes

WORKER = "tests.evaluation.worker"


def test_two_processes_give_the_numbers_of_one(finished: tuple[Path, Results], tmp_path: Path) -> None:
    """Two batches and a short one: rank 0 has two of the three."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    done = subprocess.run(
        [*launch, str(free_port()), "-m", WORKER, *command(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    results_path = tmp_path / "results.json"
    assert results_path.exists(), done.stderr
    assert done.stdout.count("wrote ") == 1
    results = json.loads(results_path.read_text())
    for part in ("policies", "true_scenes", "run", "pictures"):
        assert results[part] == finished[1][part], part


def test_a_killed_process_loses_nothing_that_was_finished(
    run: Run, finished: tuple[Path, Results], tmp_path: Path
) -> None:
    port = free_port()
    both = [start(WORKER, rank, port, "--die-after", "2", *command(tmp_path)) for rank in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert both[1].returncode == -signal.SIGKILL, errors[1]
    assert both[0].returncode == EXIT_ERROR, errors[0]
    assert "requires all 2 processes to finish, but one ended early" in errors[0]
    assert "run the same command again" in errors[0]
    assert not (tmp_path / "results.json").exists()
    units = {path: path.read_bytes() for path in (tmp_path / "units").rglob("*.json")}
    assert len(units) == 2 + 3 + 2  # true scenes; all of rank 0's batch; two policies of rank 1's
    results = run(tmp_path)
    assert {path: path.read_bytes() for path in units} == units
    assert results == finished[1]


def test_variables_of_torchrun() -> None:
    assert Processes.from_environment({}) == Processes(0, 1, 0)
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert Processes.from_environment(given) == Processes(5, 8, 1)


@pytest.mark.parametrize(
    "given",
    [
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    ],
)
def test_other_variables_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(OptionError, match="requires the variables of torchrun, got RANK="):
        Processes.from_environment(given)


def test_shards_are_uneven_and_whole() -> None:
    shares = [Processes(rank, 3).share(range(7)) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    third = Processes(2, 4, 2)
    assert third.device("auto") == third.device("cuda") == "cuda:2"
    assert third.device("cpu") == "cpu"
    assert Processes().device("cuda:1") == "cuda:1"
    with pytest.raises(OptionError, match="--device requires auto, cpu or cuda where torchrun"):
        third.device("cuda:0")
