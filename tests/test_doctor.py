"""The doctor: complete where all is well, and exact about what is missing."""

from __future__ import annotations

import json

import pytest
import torch

from toprovar_compiler import doctor
from toprovar_compiler.cli import EXIT_OK, EXIT_PROBLEM, main
from toprovar_compiler.doctor import Finding, examine, require_compiler
from toprovar_compiler.errors import KernelUnavailableError
from toprovar_compiler.kernels.cpu_native import Native

NO_COMPILER = Finding("compiler", False, False, "no C++ compiler that Inductor finds; install one")


def test_this_machine_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == EXIT_OK
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    assert "toprovar::flash_attention_entropy for CPU" in printed
    assert "cpu     blocks: Inductor, C++; attention with entropy: C++ kernel" in printed


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


@pytest.mark.parametrize(
    ("why_not", "attention"),
    [
        (None, "Hopper kernel, Triton for the rest"),
        (
            "it needs compute capability 9.0, got 8.0",
            "Triton kernel (Hopper's: it needs compute capability 9.0, got 8.0)",
        ),
    ],
)
def test_which_attention_a_gpu_gets(
    why_not: str | None, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"gpus": [{"name": "G", "capability": "9.0", "memory_gib": 1.0}], "triton": "3.6.0"}
    monkeypatch.setattr(doctor, "environment", lambda: facts)
    monkeypatch.setattr(doctor, "hopper_unavailable", lambda device: why_not)
    monkeypatch.setattr(doctor, "direct_unavailable", lambda: None)
    gpu = examine().plans[1]
    assert (gpu.device, gpu.attention, gpu.why_not) == ("cuda:0", attention, None)
    monkeypatch.setattr(doctor, "direct_unavailable", lambda: "why")
    assert examine().plans[1].attention == f"{attention}, launched by Triton each time (why)"


def test_probe_tries_the_hopper_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"gpus": [{"name": "G", "capability": "9.0", "memory_gib": 1.0}], "triton": "3.6.0"}
    monkeypatch.setattr(doctor, "environment", lambda: facts)
    monkeypatch.setattr(doctor, "hopper_unavailable", lambda device: None)
    monkeypatch.setattr(doctor, "direct_unavailable", lambda: None)
    monkeypatch.setattr(doctor, "hopper_shortfall", lambda device, size, dtype: "no" if size == 128 else None)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(doctor, "native", lambda: Native(object(), 16, True, None))
    assert examine().plans[1].attention == "Hopper kernel, Triton for the rest"
    assert examine(probe=True).plans[1].attention == "Triton kernel (Hopper's: no)"


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


@pytest.mark.parametrize(
    ("kernel", "ok", "detail", "attention"),
    [
        (Native(object(), 16, True, None), True, "attention in C++, vectors of 16 floats, bfloat16", "C++"),
        (Native(object(), 8, False, None), True, "attention in C++, vectors of 8 floats", "C++ kernel"),
        (
            Native(None, 0, False, "no compiler"),
            False,
            "no compiler; install one",
            "torch operations on tiles",
        ),
    ],
)
def test_probe_compiles_the_cpu_kernel(
    kernel: Native, ok: bool, detail: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "native", lambda: kernel)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    diagnosis = examine(probe=True)
    finding = diagnosis.findings[-2]
    assert (finding.name, finding.ok, finding.needed) == ("CPU kernel", ok, False)
    assert finding.detail.startswith(detail)
    assert diagnosis.plans[0].attention.startswith(attention)
    assert diagnosis.usable
