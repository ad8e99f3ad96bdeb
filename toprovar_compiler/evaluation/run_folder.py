"""A folder that belongs to one run: whose it is, files written whole, and errors that name them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toprovar_compiler.errors import ArtifactError

_RUN = "run.json"


def claim(folder: Path, kind: str, version: int, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Make the folder this run's, or check that it is.

    Args:
        kind, version: of the folder's contents.
        identity: JSON values; what else the same contents could not be expected from.

    Returns:
        What the folder says of itself.

    Raises:
        ArtifactError: the folder belongs to another run; both are named.
    """
    path = folder / _RUN
    wanted: dict[str, Any] = json.loads(dump({"format": kind, "format_version": version, **identity}))
    if not path.exists():
        write_text(path, dump(wanted))
        return wanted
    found = read_json(path)
    if found.get("format") != kind:
        raise ArtifactError(f"{path} requires format {kind!r}, got another file; pass another --out")
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise ArtifactError(
                f"the results in {folder} require {key} {found.get(key)!r}, got "
                f"{wanted.get(key)!r}; pass another --out, or remove that folder to start anew"
            )
    return wanted


def dump(value: Mapping[str, Any]) -> str:
    """JSON text; ValueError for numbers that are not finite."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Raises ArtifactError, as :func:`whole`."""
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file until it is whole; other processes may be writing the same one.

    Raises:
        ArtifactError: it cannot be written: no room, no permission, no folder.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written ({error.strerror}); make room, or pass another --out"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    remedy = "remove it and run the command again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); run the command again") from error
    except ValueError as error:
        raise ArtifactError(f"{path} requires JSON, got something else ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} requires a JSON object, got {type(value).__name__}; {remedy}")
    return value
