"""The command ``toprovar report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from toprovar_compiler.cli_arguments import (
    EXIT_OK,
    add_model,
    add_policy,
    add_pruning,
    add_traceback,
    painting_settings,
)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``toprovar report``."""
    parser.description = (
        "Paints each prompt dense and under the policy, from the same seed, and writes one HTML file that "
        "needs nothing but itself: pictures and their difference, entropy maps, what was computed and what "
        "was not, and why."
    )
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt (repeat for more)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="file to write")
    add_model(parser)
    add_policy(parser)
    add_pruning(parser)
    add_traceback(parser)
    parser.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.report.run import write_report  # pillow is an extra that others do without

    print(write_report(painting_settings(arguments, arguments.prompt or ())))
    return EXIT_OK
