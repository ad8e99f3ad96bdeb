"""The doctor: complete where all is well, and exact about what is missing."""

from __future__ import annotations

import json

import pytest
import torch

from toprovar_compiler import doctor
from toprovar_compiler.cli import EXIT_OK, EXIT_PROBLEM, main
from toprovar_compiler.doctor import Finding, examine, require_compiler
from toprovar_compiler.errors import KernelUnavailableError

NO_COMPILER = Finding("compiler", False, False, "no C++ compiler that Inductor finds; install one")


def test_this_machine_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == EXIT_OK
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    assert "toprovar::flash_attention_entropy for CPU" in printed
    assert "cpu     blocks: Inductor, C++" in printed


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == EXIT_OK
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] is True
    assert report["environment"]["torch"] == torch.__version__
    assert {plan["device"].partition(":")[0] for plan in report["plans"]} == {"cpu", "cuda"}


def test_a_missing_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_compiler", lambda: NO_COMPILER)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["doctor"]) == EXIT_PROBLEM
    assert "cpu     nothing: no C++ compiler that Inductor finds; install one" in capsys.readouterr().out
    with pytest.raises(KernelUnavailableError, match=r"requires a compiler, got no C\+\+ compiler"):
        require_compiler(torch.device("cpu"))
    require_compiler(torch.device("cuda"))


def test_an_uninstalled_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor.metadata, "entry_points", lambda group: [])
    assert main(["doctor"]) == EXIT_PROBLEM
    assert "MISSING entry point  not registered" in capsys.readouterr().out


def test_a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"gpus": [{"name": "G", "capability": "9.0", "memory_gib": 1.0}], "triton": None}
    monkeypatch.setattr(doctor, "environment", lambda: facts)
    diagnosis = examine()
    gpu = diagnosis.plans[1]
    assert (gpu.device, gpu.why_not) == ("cuda:0", "Triton is not installed: pip install triton")
    assert Finding("GPU", True, False, "G (sm_90)") in diagnosis.findings


@pytest.mark.parametrize("works", [True, False])
def test_probe_compiles_something(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(function: object) -> object:
        if works:
            return function
        raise RuntimeError("cc1plus\nwas killed")

    monkeypatch.setattr(torch, "compile", compile_)
    diagnosis = examine(probe=True)
    probe = diagnosis.findings[-1]
    assert (probe.name, probe.ok, diagnosis.usable) == ("probe", works, works)
    assert works or "cc1plus was killed" in probe.detail
