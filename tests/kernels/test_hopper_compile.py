"""The Hopper kernel compiled for sm_90 with no GPU: which instructions it is made of, and what it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from toprovar_compiler.kernels.hopper_plans import BIASED_PLANS, PLANS, Plan

ROOT = Path(__file__).resolve().parents[2]
OLDEST_TRITON = "3.6"
SHARED_MEMORY = 232448  # bytes a block may have; several share what one multiprocessor has, 1 KiB more each
Case = tuple[Plan, int, str, bool, str | None]
"""Plan, head size, dtype, whether programs share the keys, and the dtype of a bias."""


def cases() -> Iterator[Case]:
    """Parts of the keys are for plans whose programs share a multiprocessor; others fill the GPU without."""
    for size, dtype in product(PLANS, ("bf16", "fp16")):
        for plan in PLANS[size]:
            yield plan, size, dtype, False, None
            if plan.resident > 1:
                yield plan, size, dtype, True, None
        for split, bias in ((False, "u8"), (False, dtype), (True, "fp32")):
            yield BIASED_PLANS[size], size, dtype, split, bias


def compile_offline(plan: Plan, size: int, dtype: str, split: bool, bias: str | None) -> None:
    """Print the kernel's measures as JSON. For a process without Triton's interpreter, which tests set."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from toprovar_compiler.kernels import direct_launch
    from toprovar_compiler.kernels.hopper_kernels import attention_entropy_hopper

    plan = Plan(*plan)

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
        "BIAS": bias is not None,
    }
    numbers = ("bias_stride_b", "bias_stride_h", "bias_stride_q")
    numbers += ("heads", "group", "queries", "keys", "blocks", "splits")
    signature = {"Q": tiles(64), "K": tiles(plan.keys), "V": tiles(plan.keys), "BIAS_AT": f"*{bias or 'fp32'}"}
    signature |= {"OUT": f"*{dtype}", **dict.fromkeys(("ENTROPY", "PART", "STATS"), "*fp32"), **dict.fromkeys(numbers, "i32")}
    signature |= {"scale": "fp32", "most": "fp32", **dict.fromkeys(constants, "constexpr")}
    aligned = {(at,): [["tt.divisibility", 16]] for at in (4, 5, 6, 7)}
    source = GluonASTSource(attention_entropy_hopper, signature, constants, aligned)
    options = {"num_warps": 4, "maxnreg": plan.launch_registers}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptx, machine_code = made.asm["ptx"], disassemble(tools, made.asm["cubin"])
    direct_launch._require_parameters(ptx, tuple(direct_launch._expanded(signature.values())))
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


def compiled(case: Case) -> dict[str, Any]:
    triton = pytest.importorskip("triton", minversion=OLDEST_TRITON, reason="an older Triton has another Gluon")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    for tool in ("ptxas", "nvdisasm"):
        if not (tools / tool).exists():
            pytest.skip(f"this Triton comes without {tool}, as builds for other makers' GPUs do")
    call = f"compile_offline{(tuple(case[0]), *case[1:])}"
    code = f"from tests.kernels.test_hopper_compile import compile_offline\n{call}"
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measures: dict[str, Any] = json.loads(done.stdout)
    return measures


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: "-".join(map(str, (*case[0], *case[1:]))))
def test_compiles_to_hopper_instructions_without_spills(case: Case) -> None:
    plan, _, dtype, _, bias = case
    measures = compiled(case)
    assert measures["wgmma"] > 0
    assert measures["loads"] > 0
    assert measures["shared"] <= (SHARED_MEMORY + 1024) // plan.resident - 1024
    exact = [True] if dtype == "fp16" else [False, True]
    if bias is None:  # whose own maximum guards the entropy of masked keys in every pass
        assert measures["loops"] == exact * plan.warpgroups
    else:
        assert len(measures["loops"]) == len(exact) * plan.warpgroups
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in measures["assembler"]
    # The assembler warns where it runs one wgmma after another, or ignores a change of registers.
    assert "Potential Performance Loss" not in measures["assembler"]
    assert "warning" not in measures["assembler"].lower()
