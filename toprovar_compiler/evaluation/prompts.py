"""The prompts of a run: lines of a text file, or held-out ones of the suite."""

from __future__ import annotations

from pathlib import Path

from toprovar_compiler.errors import ArtifactError, OptionError
from toprovar_compiler.evaluation.suite import Suite

_REMEDY = "pass a text file with one prompt per line"
_CONTROL = range(0x20)


def read_prompts(source: str, seed: int, suite: Suite | None) -> list[str]:
    """The prompts that ``source`` names.

    Args:
        source: how many of the suite's prompts, or a UTF-8 text file with one prompt per line (blank lines
            and surrounding blanks do not count).
        seed: of the suite's choice.
        suite: None if the model has none.

    Raises:
        OptionError: a number below 1, or a number without a suite.
        ArtifactError: the file is missing, empty, or no text.
        ValueError: the suite has not so many prompts.
    """
    if not source.isascii() or not source.lstrip("+-").isdigit():
        return _read_lines(Path(source))
    count = int(source)
    if count < 1:
        raise OptionError(f"--prompts requires at least 1 prompt, got {count}; or a text file of them")
    if suite is None:
        raise OptionError(
            f"--prompts {count} requires a suite to take the prompts from, got none for this model; "
            f"{_REMEDY}, or --suite module:function"
        )
    return list(suite.prompts(count, seed))


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"prompt file {path} requires UTF-8 text, got other bytes at {error.start}; {_REMEDY}"
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"--prompts requires a number or a prompt file, got {str(path)!r} ({error.strerror}); {_REMEDY}"
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, start=1):
        if any(ord(character) in _CONTROL for character in line):
            raise ArtifactError(
                f"prompt file {path} requires text, got a control character in line {number}; {_REMEDY}"
            )
    prompts = [line for line in lines if line]
    if not prompts:
        raise ArtifactError(f"prompt file {path} requires at least one prompt, got an empty file; {_REMEDY}")
    return prompts
