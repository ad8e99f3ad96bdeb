"""The wheel and the editable install, each in an environment of its own, from a copy of the sources.

The environments see this one's packages through a path file, so that nothing is downloaded; what is installed
in them comes first, and this one's own (editable) install does not reach them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import toprovar_compiler

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "toprovar_compiler")


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Output of a command that must succeed, outside the checkout and without its import path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(python: Path, folder: Path, *arguments: str | Path) -> None:
    base = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run([*base, "--no-deps", "--no-index", "--no-build-isolation", *arguments], folder)


def make_environment(folder: Path) -> Path:
    """The interpreter of a new environment that sees this one's packages."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    own = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    theirs = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (own / "other_packages.pth").write_text("\n".join(theirs) + "\n")
    return python


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from; building writes into it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, checkout], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = make_environment(tmp_path_factory.mktemp("from_wheel"))
    pip(python, wheel.parent, wheel)
    return python


@pytest.fixture(scope="module")
def from_editable(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("from_editable")
    python = make_environment(folder)
    pip(python, folder, "--editable", checkout)
    return python


@pytest.fixture(params=["from_wheel", "from_editable"])
def python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment with the package installed, one way and the other."""
    found: Path = request.getfixturevalue(request.param)
    return found


def test_wheel_is_pure_and_complete(wheel: Path) -> None:
    version = toprovar_compiler.__version__
    assert wheel.name == f"toprovar_compiler-{version}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT)) for path in (ROOT / "toprovar_compiler").rglob("*.py") if path.is_file()
    }
    info = f"toprovar_compiler-{version}.dist-info"
    # The C++ kernel travels as source: it is compiled where it runs.
    kernels = (ROOT / "toprovar_compiler" / "kernels").iterdir()
    data = {str(path.relative_to(ROOT)) for path in kernels if path.suffix in (".cpp", ".h")}
    data.add("toprovar_compiler/py.typed")
    data.add("toprovar_compiler/policies/decisions/emojivar.json")  # what policy="skipvar" reads
    data.add("toprovar_compiler/policies/calibrations/emojivar.json")  # what policy="toprovar" reads
    licences = {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"}
    assert modules | licences | data <= names
    assert "toprovar_compiler/kernels/ops.py" in modules
    assert "toprovar_compiler/kernels/cpu_attention.cpp" in data
    own = {name for name in names if not name.startswith(info)}
    assert own == modules | data


def test_metadata(wheel: Path) -> None:
    name = f"toprovar_compiler-{toprovar_compiler.__version__}.dist-info/METADATA"
    metadata = zipfile.ZipFile(wheel).read(name).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: torch>=2.8" in metadata
    assert "Requires-Python: >=3.10" in metadata


def test_torch_finds_the_backend_without_an_import(python: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch; from torch._dynamo.backends.registry import lookup_backend;"
        "assert 'toprovar' in torch._dynamo.list_backends();"
        "assert 'toprovar_compiler' not in sys.modules;"
        "print(lookup_backend('toprovar').__module__)"
    )
    assert run([python, "-c", code], tmp_path).strip() == "toprovar_compiler.backend"


def test_console_script_runs(python: Path, tmp_path: Path) -> None:
    script = python.parent / "toprovar"
    assert run([script, "--version"], tmp_path).strip() == f"toprovar {toprovar_compiler.__version__}"
    report = json.loads(run([script, "doctor", "--json"], tmp_path))
    assert report["usable"]
    assert next(f for f in report["findings"] if f["name"] == "entry point")["ok"]


def test_kernels_are_installed_and_links_are_not(python: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, toprovar_compiler.kernels.ops as ops;"
        "print(ops.__file__); print(u.find_spec('passes'), u.find_spec('kernels'))"
    )
    where, links = run([python, "-c", code], tmp_path).splitlines()
    assert not where.startswith(str(ROOT))
    assert links == "None None"
