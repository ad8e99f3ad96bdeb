"""The console script ``toprovar``: demo, generate, report, evaluate, pareto, calibrate, doctor."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

import toprovar_compiler
from toprovar_compiler.cli_arguments import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PROBLEM,
    add_painting,
    add_traceback,
    painting_settings,
)
from toprovar_compiler.cli_calibrate import add_calibrate
from toprovar_compiler.cli_evaluate import add_evaluate, add_pareto
from toprovar_compiler.cli_report import add_report
from toprovar_compiler.errors import ToprovarError


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
    add_report(
        commands.add_parser("report", help="paint prompts dense and pruned, and show why, in one file")
    )
    add_evaluate(commands.add_parser("evaluate", help="compare policies: quality, FLOPs and speed"))
    add_pareto(commands.add_parser("pareto", help="plot quality over speed of several evaluations"))
    add_calibrate(commands.add_parser("calibrate", help="learn what may be pruned of a model, and how much"))
    _add_doctor(commands.add_parser("doctor", help="what is installed, what would run where, and why not"))
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt (repeat for more; default: six of them)"
    )
    add_painting(parser)
    parser.set_defaults(command=_demo)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to paint, e.g. 'a red mug'")
    add_painting(parser)
    parser.set_defaults(command=_generate)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--probe", action="store_true", help="also compile and run a small function")
    add_traceback(parser)
    parser.set_defaults(command=_doctor)


def _demo(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.demo import PROMPTS, run_demo  # pillow is an extra that others do without

    print(run_demo(painting_settings(arguments, arguments.prompt or PROMPTS)))
    return EXIT_OK


def _generate(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.cli_generate import generate  # pillow is an extra that others do without

    print(generate(painting_settings(arguments, arguments.prompts)))
    return EXIT_OK


def _doctor(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.doctor import examine

    diagnosis = examine(probe=arguments.probe)
    print(json.dumps(diagnosis.to_dict(), indent=1) if arguments.json else diagnosis)
    return EXIT_OK if diagnosis.usable else EXIT_PROBLEM


if __name__ == "__main__":
    sys.exit(main())
