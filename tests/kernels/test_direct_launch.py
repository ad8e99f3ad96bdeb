"""Direct launches: the parameters that Triton's own launch would fill, and what happens where they cannot be made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from toprovar_compiler.kernels import direct_launch
from toprovar_compiler.kernels.direct_launch import direct, direct_unavailable, parameter_sizes, watched

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub_libcuda.c")
OLDEST_TRITON = "3.6"  # whose Gluon the Hopper kernel is written in
CASES = ("Hopper", "Hopper, parts, bias", "portable, parts, bias", "portable")
PTX = """
.visible .entry attention(
	.param .align 64 .b8 attention_param_0[128],
	.param .u32 attention_param_1,
	.param .u64 .ptr .global .align 1 attention_param_2,
	.param .f32 attention_param_3,
	.param .u64 .ptr .global .align 1 attention_param_4
)
.reqntid 128
"""


@pytest.fixture(scope="module")
def _stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `libcuda.so.1` that launches nothing."""
    triton = pytest.importorskip("triton", minversion=OLDEST_TRITON)
    compiler = shutil.which("cc")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    if compiler is None or not (headers / "cuda.h").exists():
        pytest.skip("needs a C compiler and a Triton for NVIDIA's GPUs")
    folder = tmp_path_factory.mktemp("stub")
    options = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{headers}", "-o", folder / "libcuda.so.1"]
    subprocess.run([compiler, *options, STUB], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_repeated_launch_has_the_parameters_of_tritons_own(case: str, _stub: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folder = str(_stub)
    kept |= {"LD_LIBRARY_PATH": folder, "TRITON_LIBCUDA_PATH": folder, "TRITON_CACHE_DIR": f"{folder}/cache"}
    command = [sys.executable, "-W", "error::UserWarning", "-m", "tests.kernels.stub_gpu", case]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def _fresh() -> Iterator[None]:
    for known in (direct, direct_unavailable):
        known.cache_clear()
    yield
    for known in (direct, direct_unavailable):
        known.cache_clear()


def program(ptx: str = PTX, **signature: str) -> Any:
    """What Triton makes of a kernel, as far as it matters here."""
    types = {"Q": "tensordesc<bf16[1, 1, 64, 128],layout>", "heads": "i32", "OUT": "*bf16", "scale": "fp32"}
    return SimpleNamespace(
        run=None,
        metadata=SimpleNamespace(tensordesc_meta=[]),
        src=SimpleNamespace(signature=signature or types),
        asm={"ptx": ptx},
    )


def test_reads_parameters_from_the_code() -> None:
    assert parameter_sizes(PTX) == [128, 4, 8, 4, 8]
    with pytest.raises(RuntimeError, match=r"parameters of \[128, 4, 8, 4, 8\] bytes, got arguments of \[8, 4\]"):
        direct_launch._require_parameters(PTX, ("*bf16", "constexpr", "i32"))
    direct_launch._require_parameters(PTX, ("nvTmaDesc", "i32", "constexpr", "*bf16", "fp32"))


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("signature", [{"OUT": "*bf16"}, {"scale": "fp8"}])
def test_code_that_is_not_as_expected_warns_once(signature: dict[str, str]) -> None:
    compiled = program(**signature)
    compiled = type("Compiled", (), vars(compiled))()  # hashed by identity, as Triton's are
    with pytest.warns(UserWarning, match="launched through Triton's binding of arguments"):
        assert direct(compiled) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert direct(compiled) is None


@pytest.mark.usefixtures("_fresh")
def test_the_interpreter_compiles_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert direct(None) is None


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(("version", "known"), [("3.3.1", False), ("3.4.0", True), ("3.6.0+git1", True), ("3.10.0", False)])
def test_only_known_versions(version: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    reason = direct_unavailable()
    assert reason is None if known else f"got {version}" in str(reason)


def test_watchers() -> None:
    def watching(enter: Any, leave: Any) -> bool:
        return watched(SimpleNamespace(launch_enter_hook=enter, launch_exit_hook=leave))

    assert not watching(None, None)
    assert not watching(SimpleNamespace(calls=[]), SimpleNamespace(calls=[]))
    assert watching(print, None)
    assert watching(None, SimpleNamespace(calls=[print]))
