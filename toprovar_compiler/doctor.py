"""``toprovar doctor``: what is installed, what would run where, and why not."""

from __future__ import annotations

import subprocess
import sysconfig
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toprovar_compiler.environment import environment
from toprovar_compiler.errors import KernelUnavailableError
from toprovar_compiler.kernels.cpu_native import Native, native
from toprovar_compiler.kernels.direct_launch import direct_unavailable
from toprovar_compiler.kernels.hopper_attention import hopper_shortfall, hopper_unavailable
from toprovar_compiler.kernels.hopper_plans import PLANS

_BACKEND_GROUP = "torch_dynamo_backends"
_BACKEND_NAME = "toprovar"
_OPS = ("flash_attention_entropy", "entropy_gate")
_COMPILER_REMEDY = "install one, e.g. the packages g++ and python3-dev, or name yours in the variable CXX"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``needed`` says whether toprovar is of no use without it."""

    name: str
    ok: bool
    needed: bool
    detail: str


@dataclass(frozen=True)
class Plan:
    """What runs on one kind of device; ``why_not`` is None where everything does."""

    device: str
    blocks: str
    attention: str
    why_not: str | None


@dataclass(frozen=True)
class Diagnosis:
    """All of it; ``str()`` is the report for people, :meth:`to_dict` for programs."""

    facts: dict[str, Any]
    findings: tuple[Finding, ...]
    plans: tuple[Plan, ...]

    @property
    def usable(self) -> bool:
        """Nothing that is needed is missing, and some device can run everything."""
        return all(f.ok or not f.needed for f in self.findings) and any(not p.why_not for p in self.plans)

    def to_dict(self) -> dict[str, Any]:
        return {
            "usable": self.usable,
            "environment": self.facts,
            "findings": [asdict(finding) for finding in self.findings],
            "plans": [asdict(plan) for plan in self.plans],
        }

    def __str__(self) -> str:
        facts = self.facts
        lines = [
            f"toprovar {facts['toprovar']}, Python {facts['python']}, torch {facts['torch']}, "
            f"{facts['platform']}, {facts['cpu']} ({facts['cores']} cores, {facts['torch_threads']} threads)"
        ]
        for finding in self.findings:
            mark = "ok" if finding.ok else "MISSING" if finding.needed else "no"
            lines.append(f"  {mark:<8}{finding.name:<13}{finding.detail}")
        lines.append("what runs where")
        for plan in self.plans:
            runs = f"blocks: {plan.blocks}; attention with entropy: {plan.attention}"
            lines.append(f"  {plan.device:<8}{runs if plan.why_not is None else f'nothing: {plan.why_not}'}")
        return "\n".join(lines)


def examine(probe: bool = False) -> Diagnosis:
    """Look at everything. With ``probe`` the attention kernels of the CPU and of Hopper GPUs and a small
    function are compiled too, and the latter two run, which takes seconds."""
    compiler = _compiler()
    findings = [_entry_point(), *map(_op, _OPS), compiler, _headers(), _triton(), _gpus()]
    kernel = None
    if probe:
        kernel = native()
        findings += [_kernel(kernel), _probe()]
    return Diagnosis(environment(), tuple(findings), (_cpu_plan(compiler, kernel), *_gpu_plans(probe)))


def require_compiler(device: torch.device) -> None:
    """Refuse early what Inductor would refuse late, in the middle of a generation.

    Raises:
        KernelUnavailableError: blocks on ``device`` cannot be compiled here.
    """
    if device.type != "cpu":
        return
    for finding in (_compiler(), _headers()):
        if not finding.ok:
            raise KernelUnavailableError(
                f"compiling for the CPU requires a {finding.name}, got {finding.detail}"
            )


def _entry_point() -> Finding:
    found = any(entry.name == _BACKEND_NAME for entry in metadata.entry_points(group=_BACKEND_GROUP))
    detail = (
        f'torch.compile(model, backend="{_BACKEND_NAME}") works without an import'
        if found
        else "not registered with torch.compile; install the package (pip install -e .)"
    )
    return Finding("entry point", found, True, detail)


def _op(name: str) -> Finding:
    from toprovar_compiler.kernels import ops  # noqa: F401  (registers the ops)

    full = f"{_BACKEND_NAME}::{name}"
    keys = [
        key for key in ("CPU", "CUDA") if torch._C._dispatch_has_computed_kernel_for_dispatch_key(full, key)
    ]
    return Finding("op", bool(keys), True, f"{full} for {' and '.join(keys) or 'no device'}")


def _compiler() -> Finding:
    """The C++ compiler that Inductor picks."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        path = get_cpp_compiler()
    except InvalidCxxCompiler:
        return Finding("compiler", False, False, f"no C++ compiler that Inductor finds; {_COMPILER_REMEDY}")
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return Finding("compiler", True, False, shown.splitlines()[0] if shown else path)


def _headers() -> Finding:
    folder = Path(sysconfig.get_paths()["include"])
    if (folder / "Python.h").exists():
        return Finding("headers", True, False, "of Python, for Inductor's CPU code")
    return Finding("headers", False, False, f"no Python.h in {folder}; {_COMPILER_REMEDY}")


def _triton() -> Finding:
    version = environment()["triton"]
    if version is None:
        return Finding("Triton", False, False, "not installed; GPUs need it: pip install triton")
    return Finding("Triton", True, False, version)


def _gpus() -> Finding:
    gpus = environment()["gpus"]
    if gpus:
        named = (f"{gpu['name']} (sm_{gpu['capability'].replace('.', '')})" for gpu in gpus)
        return Finding("GPU", True, False, ", ".join(named))
    return Finding("GPU", False, False, _no_gpu())


def _no_gpu() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and sees no device"


def _kernel(kernel: Native) -> Finding:
    """The CPU's attention in C++, without which attention runs all the same, but slower."""
    if kernel.why_not is not None:
        return Finding("CPU kernel", False, False, f"{kernel.why_not}; {_COMPILER_REMEDY}")
    unit = ", bfloat16 on the tile unit (AMX)" if kernel.tiles else ""
    return Finding("CPU kernel", True, False, f"attention in C++, vectors of {kernel.width} floats{unit}")


def _cpu_plan(compiler: Finding, kernel: Native | None) -> Plan:
    headers = _headers()
    missing = next((f.detail for f in (compiler, headers) if not f.ok), None)
    compiled = kernel is None or kernel.why_not is None
    return Plan("cpu", "Inductor, C++", "C++ kernel" if compiled else "torch operations on tiles", missing)


def _gpu_plans(probe: bool) -> list[Plan]:
    def plan(device: str, attention: str, why_not: str | None) -> Plan:
        return Plan(device, "Inductor, Triton", attention, why_not)

    facts = environment()
    if not facts["gpus"]:
        return [plan("cuda", "Triton kernel", _no_gpu())]
    why_not = None if facts["triton"] else "Triton is not installed: pip install triton"
    names = [f"cuda:{index}" for index in range(len(facts["gpus"]))]
    return [
        plan(name, _gpu_attention(torch.device(name), probe) if why_not is None else "Triton kernel", why_not)
        for name in names
    ]


def _gpu_attention(device: torch.device, probe: bool) -> str:
    """Which kernels serve; why the Hopper one does not, and why launches cost more than they need, if so."""
    why_not = hopper_unavailable(device)
    if probe and why_not is None:
        tried = (hopper_shortfall(device, size, torch.bfloat16) for size in PLANS)
        why_not = next(filter(None, tried), None)
    serving = (
        "Hopper kernel, Triton for the rest" if why_not is None else f"Triton kernel (Hopper's: {why_not})"
    )
    slow = direct_unavailable()
    return serving if slow is None else f"{serving}, launched by Triton each time ({slow})"


def _probe() -> Finding:
    """Compile and run one fused function on the device that would be used."""

    def function(x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x) * 2

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.linspace(-1, 1, 64, device=device)
    try:
        got = torch.compile(function)(x)
    except Exception as error:
        return Finding("probe", False, True, f"Inductor failed on {device}: {' '.join(str(error).split())}")
    right = torch.allclose(got, function(x))
    return Finding("probe", right, True, f"Inductor {'works' if right else 'computes wrongly'} on {device}")
