"""Checkouts of official repositories that a benchmark runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def use(code: Path, repository: str, holds: str) -> None:
    """Lets modules of the checkout be imported.

    Args:
        holds: a file that tells it from other folders.

    Raises:
        FileNotFoundError: ``code`` is no checkout of the repository.
    """
    if not (code / holds).is_file():
        raise FileNotFoundError(f"requires a checkout of github.com/{repository}, got {code}")
    sys.path.insert(0, str(code.resolve()))


def commit(code: Path) -> str | None:
    """Of the checkout; None where it is a copy without a history."""
    return _git(code, "HEAD") if _git(code, "--show-toplevel") == str(code.resolve()) else None


def _git(folder: Path, asked: str) -> str:
    command = ["git", "-C", str(folder), "rev-parse", asked]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
