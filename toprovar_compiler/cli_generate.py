"""``toprovar generate``: prompts in, pictures and the proof of effect out."""

from __future__ import annotations

import re

import toprovar_compiler
from toprovar_compiler import figures
from toprovar_compiler.cli_model import PaintingSettings, load_model, paint
from toprovar_compiler.doctor import require_compiler

_LONGEST_NAME = 60


def generate(settings: PaintingSettings) -> str:
    """Paint all prompts in one batch, one PNG each under ``settings.out``; returns the report.

    Raises:
        ToprovarError: no model, no compiler, an option out of range.
        ValueError: the model refuses a prompt.
    """
    model = load_model(settings.model, settings.device, settings.dtype)
    require_compiler(next(model.parameters()).device)
    toprovar_compiler.compile(model, **settings.options)
    pictures = paint(model, settings.prompts, settings.seed)
    lines = [str(toprovar_compiler.summary(model))]
    for number, (prompt, picture) in enumerate(zip(settings.prompts, pictures, strict=True), start=1):
        path = settings.out / f"{number}-{_file_name(prompt)}.png"
        figures.save(figures.to_picture(picture), path)
        lines.append(f"wrote {path}")
    return "\n".join(lines)


def _file_name(prompt: str) -> str:
    """The prompt in letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_LONGEST_NAME] or "picture"
