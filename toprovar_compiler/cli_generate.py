"""``toprovar generate``: prompts in, pictures and the proof of effect out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import toprovar_compiler
from toprovar_compiler import figures
from toprovar_compiler.cli_model import load_model, paint
from toprovar_compiler.doctor import require_compiler

_LONGEST_NAME = 60


def generate(
    model_reference: str,
    device: str,
    dtype: str | None,
    prompts: Sequence[str],
    seed: int,
    options: Mapping[str, Any],
    out: Path,
) -> str:
    """Paint all prompts in one batch, one PNG each under ``out``; returns the report.

    Raises:
        ToprovarError: no model, no compiler, an option out of range.
        ValueError: the model refuses a prompt.
    """
    model = load_model(model_reference, device, dtype)
    require_compiler(next(model.parameters()).device)
    toprovar_compiler.compile(model, **options)
    pictures = paint(model, prompts, seed)
    lines = [str(toprovar_compiler.summary(model))]
    for number, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True), start=1):
        path = out / f"{number}-{_file_name(prompt)}.png"
        figures.save(figures.to_picture(picture), path)
        lines.append(f"wrote {path}")
    return "\n".join(lines)


def _file_name(prompt: str) -> str:
    """The prompt in letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_LONGEST_NAME] or "picture"
