"""``toprovar report``: prompts in, one HTML file out."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from toprovar_compiler.cli_model import PaintingSettings, load_model
from toprovar_compiler.doctor import require_compiler
from toprovar_compiler.environment import commit, environment
from toprovar_compiler.errors import ArtifactError, OptionError
from toprovar_compiler.options import parse_options
from toprovar_compiler.report.page import Origin, render
from toprovar_compiler.report.painting import paint_pairs

_SUFFIX = ".html"


def write_report(settings: PaintingSettings) -> str:
    """Paint every prompt dense and under the policy and write the page; returns what to print.

    Raises:
        ToprovarError: no prompt, a file that cannot be written, no model, no compiler, an option out of
            range, a model that gives no pictures; under ``strict=True`` a graph that cannot be pruned.
        ValueError: the model refuses a prompt.
    """
    _check_prompts(settings.prompts)
    _check_target(settings.out)
    options = parse_options(settings.options)
    model = load_model(settings.model, settings.device, settings.dtype)
    parameter = next(model.parameters())
    require_compiler(parameter.device)
    painted = paint_pairs(model, settings.prompts, settings.seed, options)
    origin = Origin(
        command=shlex.join(["toprovar", *sys.argv[1:]]),
        commit=commit(),
        environment=environment(),
        model=settings.model,
        device=str(parameter.device),
        dtype=str(parameter.dtype).removeprefix("torch."),
        given=settings.options,
    )
    _write(render(painted, origin), settings.out)
    return f"{painted.summary}\nwrote {settings.out}"


def _check_prompts(prompts: tuple[str, ...]) -> None:
    if not prompts:
        raise OptionError("report requires at least one prompt, got none; add --prompt TEXT")
    if not all(prompt.strip() for prompt in prompts):
        raise OptionError("--prompt requires a text, got an empty one; say what to paint, or leave it out")


def _check_target(out: Path) -> None:
    """Refuse before anything is painted what could not be written afterwards."""
    if out.suffix != _SUFFIX:
        raise OptionError(f"--out requires a file that ends in {_SUFFIX}, got {out.name!r}; rename it")
    if not out.parent.is_dir():
        raise OptionError(
            f"--out requires a file in a folder that exists, got {str(out)!r}; make the folder "
            f"{str(out.parent)!r} first"
        )
    target = out if out.exists() else out.parent
    if out.is_dir() or not os.access(target, os.W_OK):
        raise OptionError(f"--out requires a file that can be written, got {str(out)!r}; choose another")


def _write(page: str, out: Path) -> None:
    try:
        # A command line may hold bytes that are no text, which Python reads as characters that UTF-8 lacks.
        out.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))
    except OSError as error:
        raise ArtifactError(f"--out requires a file that can be written, got {out}: {error}") from error
