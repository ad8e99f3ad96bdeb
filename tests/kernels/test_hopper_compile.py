"""The Hopper kernel compiled for sm_90 with no GPU: which instructions it is made of, and what it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from toprovar_compiler.kernels.hopper_plans import PLANS

ROOT = Path(__file__).resolve().parents[2]
OLDEST_TRITON = "3.6"
SHARED_MEMORY = 232448  # bytes a block may have; two blocks share what one multiprocessor has, 1 KiB more
# Programs that fill the GPU need no parts of the keys: these are for the narrow plans alone.
CASES = [
    (size, index, dtype, split)
    for size, plans in PLANS.items()
    for index in range(len(plans))
    for dtype in ("bf16", "fp16")
    for split in ((False, True) if index else (False,))
]


def compile_offline(size: int, index: int, dtype: str, split: bool) -> None:
    """Print the kernel's measures as JSON. For a process without Triton's interpreter, which tests set."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from toprovar_compiler.kernels.hopper_kernels import attention_entropy_hopper

    plan = PLANS[size][index]

    def tiles(rows: int) -> str:
        layout = gl.NVMMASharedLayout.get_default_for([1, 1, rows, size], gl.bfloat16)
        return f"tensordesc<{dtype}[1, 1, {rows}, {size}],{layout!r}>"

    constants = {
        "D": size,
        "BLOCK_N": plan.keys,
        "STAGES": plan.stages,
        "WARPGROUPS": plan.warpgroups,
        "REGISTERS": plan.registers,
        "EXACT": dtype == "fp16",
        "SPLIT": split,
        "WITH_ENTROPY": True,
    }
    numbers = ("heads", "group", "queries", "keys", "blocks", "splits")
    signature = {"Q": tiles(64), "K": tiles(plan.keys), "V": tiles(plan.keys), "OUT": f"*{dtype}"}
    signature |= {**dict.fromkeys(("ENTROPY", "PART", "STATS"), "*fp32"), **dict.fromkeys(numbers, "i32")}
    signature |= {"scale": "fp32", "most": "fp32", **dict.fromkeys(constants, "constexpr")}
    aligned = {(at,): [["tt.divisibility", 16]] for at in (3, 4, 5, 6)}
    source = GluonASTSource(attention_entropy_hopper, signature, constants, aligned)
    options = {"num_warps": 4, "maxnreg": plan.launch_registers}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptx, machine_code = made.asm["ptx"], disassemble(tools, made.asm["cubin"])
    print(
        json.dumps(
            {
                "shared": made.metadata.shared,
                "wgmma": ptx.count("wgmma.mma_async"),
                "loads": ptx.count("cp.async.bulk.tensor"),
                "assembler": assemble(tools, ptx),
                "loops": hot_loops(machine_code),
            }
        )
    )


def assemble(tools: Path, ptx: str) -> str:
    """What the assembler says of the code: registers, spills and warnings."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [tools / "ptxas", "-v", f"-arch={target[1]}", "-o", os.devnull, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def disassemble(tools: Path, cubin: bytes) -> list[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tools / "nvdisasm", "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def hot_loops(lines: list[str]) -> list[bool]:
    """The loops that multiply matrices, each with whether it takes a maximum, as the exact pass does.

    Warps also await their roles in a loop, and change their registers in it.
    """
    labels = {line.split(":")[0]: at for at, line in enumerate(lines) if line.startswith(".L_x_")}
    loops = []
    for at, line in enumerate(lines):
        branch = re.search(r"BRA `\((\.L_x_\d+)\)", line)
        if branch is not None and labels[branch[1]] < at:
            body = "\n".join(lines[labels[branch[1]] : at])
            if "HGMMA" in body and "USETMAXREG" not in body:
                loops.append("FMNMX" in body)
    return loops


def compiled(size: int, index: int, dtype: str, split: bool) -> dict[str, Any]:
    triton = pytest.importorskip("triton", minversion=OLDEST_TRITON, reason="an older Triton has another Gluon")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    for tool in ("ptxas", "nvdisasm"):
        if not (tools / tool).exists():
            pytest.skip(f"this Triton comes without {tool}, as builds for other makers' GPUs do")
    call = f"compile_offline({size}, {index}, {dtype!r}, {split})"
    code = f"from tests.kernels.test_hopper_compile import compile_offline\n{call}"
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measures: dict[str, Any] = json.loads(done.stdout)
    return measures


@pytest.mark.parametrize(("size", "index", "dtype", "split"), CASES)
def test_compiles_to_hopper_instructions_without_spills(
    size: int, index: int, dtype: str, split: bool
) -> None:
    plan = PLANS[size][index]
    measures = compiled(size, index, dtype, split)
    assert measures["wgmma"] > 0
    assert measures["loads"] > 0
    assert measures["shared"] <= (SHARED_MEMORY if plan.warpgroups > 1 else SHARED_MEMORY // 2 - 1024)
    assert measures["loops"] == ([True] if dtype == "fp16" else [False, True]) * plan.warpgroups
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in measures["assembler"]
    # The assembler warns where it runs one wgmma after another, or ignores a change of registers.
    assert "Potential Performance Loss" not in measures["assembler"]
    assert "warning" not in measures["assembler"].lower()
