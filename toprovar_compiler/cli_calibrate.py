"""The command ``toprovar calibrate``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from toprovar_compiler.cli_arguments import EXIT_OK, add_device, add_traceback, whole_number
from toprovar_compiler.cli_model import DEFAULT_MODEL

_BATCH = 8


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``toprovar calibrate``."""
    parser.description = (
        "Paints prompts dense to learn what the attention's entropy says about each place of the picture, "
        "then with each scale pruned alone, and writes how much to prune where: a JSON file for the option "
        "calibration=FILE. Run it again to go on where it stopped; run it under torchrun to share the work."
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODULE:FUNCTION",
        help="a function that takes device and dtype and gives the model (default: %(default)s)",
    )
    parser.add_argument(
        "--prompts", required=True, metavar="N|FILE", help="how many of the suite's, or a text file of them"
    )
    parser.add_argument(
        "--suite", metavar="MODULE:FUNCTION", help="where prompts come from, as for toprovar evaluate"
    )
    parser.add_argument(
        "--batch",
        type=whole_number,
        default=_BATCH,
        metavar="N",
        help="pictures at a time (default: %(default)s)",
    )
    aim = parser.add_mutually_exclusive_group()
    aim.add_argument(
        "--target-speedup", type=_speedup, metavar="X", help="how many times fewer FLOPs (default: 3.4)"
    )
    aim.add_argument(
        "--min-ssim", type=_similarity, metavar="Y", help="or the mean SSIM to the dense pictures, in (0, 1]"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="file to write")
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="folder for pictures of the scales, layers and plans"
    )
    add_device(parser)
    add_traceback(parser)
    parser.set_defaults(command=_calibrate)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"requires a number, got {text!r}")
    return number


def _speedup(text: str) -> float:
    if _number(text) < 1:
        raise argparse.ArgumentTypeError(f"requires a number of at least 1, got {text!r}")
    return _number(text)


def _similarity(text: str) -> float:
    if not 0 < _number(text) <= 1:
        raise argparse.ArgumentTypeError(f"requires a number in (0, 1], got {text!r}")
    return _number(text)


def _calibrate(arguments: argparse.Namespace) -> int:
    from toprovar_compiler.calibration.calibrator import Aim  # torchmetrics is an extra
    from toprovar_compiler.calibration.run import Settings, calibrate
    from toprovar_compiler.evaluation.processes import Processes

    settings = Settings(
        model=arguments.model,
        suite=arguments.suite,
        device=arguments.device,
        dtype=arguments.dtype,
        prompts=arguments.prompts,
        seed=arguments.seed,
        batch=arguments.batch,
        aim=Aim(arguments.target_speedup, arguments.min_ssim),
        out=arguments.out,
        plots=arguments.plots,
    )
    report = calibrate(settings, Processes.from_environment())
    if report:
        print(report)
    return EXIT_OK
