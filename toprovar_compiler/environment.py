"""What this machine and this installation are: the facts that go with every measured figure."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch

import toprovar_compiler

COMMIT_VARIABLE = "TOPROVAR_COMMIT"
_GIT_SECONDS = 10


def environment() -> dict[str, Any]:
    """JSON-ready facts; ``triton`` is None where it is not installed, ``gpus`` may be empty.

    ``cpu_vectors`` are the vector instructions that torch uses: "AVX2", "AVX512", others elsewhere.
    """
    return {
        "toprovar": toprovar_compiler.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "triton": triton_version(),
        "gpus": [gpu_facts(index) for index in range(torch.cuda.device_count())],
    }


def triton_version() -> str | None:
    """The version of Triton, under either of the names that its wheels have."""
    for name in ("triton", "pytorch-triton"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def gpu_facts(index: int) -> dict[str, Any]:
    """Name, compute capability and memory in GiB of one CUDA device."""
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }


def commit() -> dict[str, Any] | None:
    """The commit of the checkout that this package runs from and whether files differ; None elsewhere.

    For a copy of a checkout without its history, the variable ``TOPROVAR_COMMIT`` may name the commit.
    """
    root = Path(toprovar_compiler.__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        named = os.environ.get(COMMIT_VARIABLE)
        return {"id": named, "modified": None} if named else None
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    return {"id": head, "modified": bool(_git(root, "status", "--porcelain"))}


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        timeout=_GIT_SECONDS,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    """The processor as Linux names it, or whatever Python knows elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
