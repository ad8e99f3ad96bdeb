"""The shape of the source tree: imports go one way, files stay short, nothing is unpickled."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "toprovar_compiler"
MOST_LINES = 300
# Each layer may import itself and the layers before it.
LAYERS = ("errors", "kernels", "passes", "rest")
OWN_FOLDERS = ("toprovar_compiler", "examples", "benchmarks", "tests")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_names(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> str:
    second = module.split(".")[1] if "." in module else ""
    return second if second in LAYERS else "rest"


@pytest.mark.parametrize("path", sources("toprovar_compiler"), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    allowed = LAYERS[: LAYERS.index(layer_of(module)) + 1]
    own = [name for name in imported_names(path) if name.split(".")[0] == "toprovar_compiler"]
    wrong = [name for name in own if layer_of(name) not in allowed]
    assert not wrong, f"{module} is of the layer {allowed[-1]!r} and imports {wrong}"


def test_the_example_model_knows_nothing_of_the_compiler() -> None:
    knowing = [
        path
        for path in sources("examples/emojivar")
        if any(name.split(".")[0] == "toprovar_compiler" for name in imported_names(path))
    ]
    assert knowing == []


def test_the_links_are_imported_by_nobody() -> None:
    through_links = [
        (path, name)
        for path in sources(*OWN_FOLDERS)
        for name in imported_names(path)
        if name.split(".")[0] in ("passes", "kernels")
    ]
    assert through_links == []


def test_kernels_is_a_namespace_package() -> None:
    # Through the root link an __init__.py would make it shadow the package `kernels` of Hugging Face.
    assert not (PACKAGE / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("name", ["passes", "kernels"])
def test_the_root_links_lead_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("toprovar_compiler") / name


@pytest.mark.parametrize("module", ["passes", "kernels.ops"])
def test_code_refuses_a_second_name(module: str) -> None:
    # A second copy of the ops' module would register them twice.
    code = f"import toprovar_compiler.kernels.ops, {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: requires")
    assert f"toprovar_compiler.{module}" in last


def test_files_are_short() -> None:
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in sources(*OWN_FOLDERS)}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_nothing_is_unpickled() -> None:
    def unsafe(path: Path) -> Iterator[str]:
        yield from (n for n in imported_names(path) if n.split(".")[0] in ("pickle", "dill", "joblib"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
                yield f"{ast.unparse(node)} in line {node.lineno}"

    found = {path: names for path in sources(*OWN_FOLDERS) if (names := list(unsafe(path)))}
    assert found == {}
