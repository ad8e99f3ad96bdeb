"""The console script ``toprovar``: generate, demo, doctor."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import toprovar_compiler
from toprovar_compiler.cli_model import DEFAULT_MODEL, DTYPES
from toprovar_compiler.errors import ToprovarError
from toprovar_compiler.options import PolicyName

EXIT_OK, EXIT_PROBLEM, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Deliberate errors are one line on stderr and status 2."""
    arguments = build_parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
    except (ToprovarError, ValueError) as error:
        if arguments.traceback:
            raise
        print(f"toprovar: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (Python flushes it at exit)
        return EXIT_OK
    except KeyboardInterrupt:
        print("toprovar: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="toprovar", description="Faster pictures from VAR-style models.")
    parser.add_argument("--version", action="version", version=f"toprovar {toprovar_compiler.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands.add_parser("demo", help="paint a grid of prompts four ways and compare"))
    _add_generate(commands.add_parser("generate", help="paint prompts with toprovar"))
    _add_doctor(commands.add_parser("doctor", help="what is installed, what would run where, and why not"))
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt (repeat for more; default: six of them)"
    )
    _add_painting(parser)
    parser.set_defaults(command=_demo)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to paint, e.g. 'a red mug'")
    _add_painting(parser)
    parser.set_defaults(command=_generate)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--probe", action="store_true", help="also compile and run a small function")
    _add_traceback(parser)
    parser.set_defaults(command=_doctor)


def _add_painting(parser: argparse.ArgumentParser) -> None:
    """What ``demo`` and ``generate`` have in common."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODULE:FUNCTION",
        help="a function that takes device and dtype and gives the model; the working directory is on the "
        "import path (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--policy", choices=get_args(PolicyName), help="what decides which tokens to skip")
    parser.add_argument(
        "--keep-ratio",
        type=_ratios,
        metavar="RATIO",
        help="share of tokens kept in a pruned block, in (0, 1]: one number, or one per scale (.5,.3,...)",
    )
    parser.add_argument("--start-scale", type=int, metavar="S", help="first scale that may be pruned, from 0")
    parser.add_argument(
        "--strict", action="store_true", default=None, help="fail where pruning was due but not possible"
    )
    _add_traceback(parser)


def _add_traceback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")


def _ratios(text: str) -> float | list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"requires a number, or numbers with commas, got {text!r}"
        ) from error
    return numbers if len(numbers) > 1 else numbers[0]


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The compiler options that the command line gave; toprovar has its own defaults for the others."""
    names = ("policy", "keep_ratio", "start_scale", "strict")
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _demo(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.demo import (
        PROMPTS,
        Settings,
        run_demo,
    )  # pillow is an extra that others do without

    settings = Settings(
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        prompts=tuple(arguments.prompt or PROMPTS),
        seed=arguments.seed,
        options=_options(arguments),
        out=arguments.out,
    )
    print(run_demo(settings))
    return EXIT_OK


def _generate(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.cli_generate import generate  # pillow is an extra that others do without

    report = generate(
        arguments.model,
        arguments.device,
        arguments.dtype,
        arguments.prompts,
        arguments.seed,
        _options(arguments),
        arguments.out,
    )
    print(report)
    return EXIT_OK


def _doctor(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.doctor import examine

    diagnosis = examine(probe=arguments.probe)
    print(json.dumps(diagnosis.to_dict(), indent=1) if arguments.json else diagnosis)
    return EXIT_OK if diagnosis.usable else EXIT_PROBLEM


if __name__ == "__main__":
    sys.exit(main())
