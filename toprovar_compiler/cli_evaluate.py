"""The commands ``toprovar evaluate`` and ``toprovar pareto``."""

from __future__ import annotations

import argparse
from pathlib import Path

from toprovar_compiler.cli_arguments import (
    EXIT_OK,
    EXIT_PROBLEM,
    add_model,
    add_pruning,
    add_traceback,
    given_options,
    whole_number,
)
from toprovar_compiler.evaluation.variants import split_names

_TIMED = 8


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``toprovar evaluate``."""
    parser.description = (
        "Paints the same prompts from the same seeds under several policies and measures quality, FLOPs and "
        "speed. Run it again to go on where it stopped; run it under torchrun to share the work."
    )
    parser.add_argument(
        "--policy",
        dest="policies",
        type=split_names,
        metavar="NAME[,NAME...]",
        help="default: all policies; options of one alone in brackets, 'toprovar[keep_ratio=0.5],fastvar'",
    )
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="N|FILE",
        help="how many of the suite's held-out prompts, or a text file with one prompt per line",
    )
    parser.add_argument(
        "--samples",
        type=whole_number,
        default=1,
        metavar="N",
        help="pictures per prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--suite",
        metavar="MODULE:FUNCTION",
        help="a function that gives the judge of the pictures, or 'none' (default: the embedded model's own)",
    )
    parser.add_argument(
        "--batch",
        type=whole_number,
        metavar="N",
        help="pictures at a time (default: 8 on a CPU, 32 on a GPU)",
    )
    parser.add_argument(
        "--timed",
        type=_count_or_none,
        default=_TIMED,
        metavar="N",
        help="how many prompts to time, one picture at a time, beside eager and plain Inductor "
        "(default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    add_model(parser)
    add_pruning(parser)
    add_traceback(parser)
    parser.set_defaults(command=_evaluate)


def add_pareto(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``toprovar pareto``."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results of toprovar evaluate")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="picture to write (.png, .svg)"
    )
    add_traceback(parser)
    parser.set_defaults(command=_pareto)


def _count_or_none(text: str) -> int:
    return whole_number(text, least=0)


def _evaluate(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.evaluation.processes import Processes
    from toprovar_compiler.evaluation.run import (
        Settings,
        evaluate,
    )  # pillow and torchmetrics are extras that others do without

    settings = Settings(
        model=arguments.model,
        suite=arguments.suite,
        device=arguments.device,
        dtype=arguments.dtype,
        policies=arguments.policies,
        prompts=arguments.prompts,
        samples=arguments.samples,
        batch=arguments.batch,
        timed=arguments.timed,
        seed=arguments.seed,
        options=given_options(arguments),
        out=arguments.out,
    )
    report = evaluate(settings, Processes.from_environment())
    if report.text:
        print(report.text)
    return EXIT_OK if report.enough else EXIT_PROBLEM


def _pareto(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.evaluation.pareto import plot  # matplotlib is an extra that others do without

    print(plot(arguments.folders, arguments.out))
    return EXIT_OK
