"""What the JSON files that policies read have in common: whose they are, and how they are checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from toprovar_compiler.errors import ArtifactError
from toprovar_compiler.schedule import stated_schedule

Made = TypeVar("Made")

MOST_BYTES = 64 << 20
"""Of a file that is read at all; those of the largest public models are far smaller."""
_SKETCHED_WEIGHTS, _SKETCHED_NUMBERS = 8, 1 << 16
_SKETCH_TOLERANCE = 0.05  # rounding to bfloat16 moves a number by about 0.003, other weights by about 1


def fingerprint(model: nn.Module) -> str:
    """Tells architectures apart: class, schedule, and the names and shapes of all weights; not their values,
    which differ in every dtype and on every device."""
    digest = hashlib.sha256(f"{type(model).__name__} {stated_schedule(model)}\n".encode())
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
    return digest.hexdigest()


def sketch(model: nn.Module) -> tuple[float, ...]:
    """A few numbers that tell weights apart, whatever their dtype: projections of matrices, spread over the
    model, onto a fixed wave, in units of the matrix's own length."""
    matrices = [weight for _, weight in sorted(model.named_parameters()) if weight.dim() > 1]
    step = max(1, len(matrices) // _SKETCHED_WEIGHTS)
    found = []
    for weight in matrices[::step][:_SKETCHED_WEIGHTS]:
        values = weight.detach().flatten()[:_SKETCHED_NUMBERS].double().cpu()
        wave = torch.cos(torch.arange(len(values), dtype=torch.float64) ** 2)
        found.append(float(values @ wave / values.norm().clamp_min(torch.finfo(torch.float64).tiny)))
    return tuple(found)


def same_sketch(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two :func:`sketch` are of the same weights, up to rounding."""
    return len(one) == len(other) and all(
        abs(a - b) <= _SKETCH_TOLERANCE for a, b in zip(one, other, strict=True)
    )


def read_artifact(
    path: Path, kind: str, schema: int, title: str, remedy: str, parse: Callable[[dict[str, Any]], Made]
) -> Made:
    """What ``parse`` makes of a JSON file that says of itself that it is of this kind and schema.

    Args:
        title: what the file holds, and remedy: what to do without it; for messages.

    Raises:
        ArtifactError: no such file, too large, no JSON, of another kind or schema, or damaged.
    """
    try:
        content = json.loads(_read(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{title} {path} requires a JSON file, got {error}; {remedy}") from error
    head = (content.get("kind"), content.get("schema")) if isinstance(content, dict) else None
    if head != (kind, schema):
        raise ArtifactError(f"{title} {path} requires kind {kind!r} of schema {schema}, got {head}; {remedy}")
    try:
        return parse(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{title} {path} is damaged ({error!r}); {remedy}") from error


def _read(path: Path) -> str:
    """The text of a regular file of at most :data:`MOST_BYTES`; OSError or ValueError for anything else."""
    if path.exists() and not path.is_file():
        raise ValueError("a folder, a pipe or a device")
    with path.open("rb") as file:
        found = file.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    return found.decode("utf-8")


def numbers(items: Iterable[Any], count: int | None = None) -> tuple[float, ...]:
    """Finite numbers, at least one or exactly ``count``; ValueError or TypeError for anything else."""
    given = tuple(items)
    if isinstance(items, str) or any(isinstance(item, (str, bool)) for item in given):
        raise ValueError(f"no numbers: {given[:8]}")
    try:
        found = tuple(float(item) for item in given)
    except OverflowError as error:
        raise ValueError("a number that is too large") from error
    if not found or not all(map(math.isfinite, found)) or count not in (None, len(found)):
        raise ValueError(f"numbers {found[:8]}")
    return found
