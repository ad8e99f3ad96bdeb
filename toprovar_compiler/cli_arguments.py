"""Arguments and exit statuses that commands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from toprovar_compiler.cli_model import DEFAULT_MODEL, DTYPES, PaintingSettings
from toprovar_compiler.options import EntropySourceName, LayerDimension, Mode, PolicyName, RestorationName

EXIT_OK, EXIT_PROBLEM, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130


def add_painting(parser: argparse.ArgumentParser) -> None:
    """What ``demo`` and ``generate`` have in common."""
    add_model(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder to write to (default: %(default)s)"
    )
    add_policy(parser)
    add_pruning(parser)
    add_traceback(parser)


def add_policy(parser: argparse.ArgumentParser) -> None:
    """The policy, for commands that run a single one."""
    parser.add_argument("--policy", choices=get_args(PolicyName), help="what decides which tokens to skip")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, where, in which precision, and the first seed."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODULE:FUNCTION",
        help="a function that takes device and dtype and gives the model; the working directory is on the "
        "import path (default: %(default)s)",
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the model runs, in which precision, and the first seed."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: %(default)s)")


def add_pruning(parser: argparse.ArgumentParser) -> None:
    """The compiler's options, all but the policy."""
    parser.add_argument(
        "--keep-ratio",
        type=_ratios,
        metavar="RATIO",
        help="share of tokens kept in a pruned block, in (0, 1]: one number, or one per scale (.5,.3,...)",
    )
    parser.add_argument(
        "--target-speedup",
        type=float,
        metavar="X",
        help="how many times fewer FLOPs, by the plans of the model's calibration",
    )
    parser.add_argument("--start-scale", type=int, metavar="S", help="first scale that may be pruned, from 0")
    parser.add_argument(
        "--scale-threshold",
        type=float,
        metavar="TAU",
        help="start only once so large a share of tokens has an entropy below the mean, in [0, 1]",
    )
    parser.add_argument(
        "--layer-dimension", choices=get_args(LayerDimension), help="which layers run in full, by their maps"
    )
    parser.add_argument("--calibration", metavar="FILE", help="of the model, made by 'toprovar calibrate'")
    parser.add_argument(
        "--entropy-source", choices=get_args(EntropySourceName), help="whose entropy ranks the tokens"
    )
    parser.add_argument(
        "--restoration", choices=get_args(RestorationName), help="what becomes of a pruned token"
    )
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        help="of torch.compile; reduce-overhead and max-autotune record CUDA graphs on a GPU",
    )
    parser.add_argument(
        "--strict", action="store_true", default=None, help="fail where pruning was due but not possible"
    )


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """For those who look for a defect."""
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")


def whole_number(text: str, least: int = 1) -> int:
    """A number of digits alone, for ``type=``."""
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"requires a whole number of at least {least}, got {text!r}")
    return int(text)


def _ratios(text: str) -> float | list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"requires a number, or numbers with commas, got {text!r}"
        ) from error
    return numbers if len(numbers) > 1 else numbers[0]


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The compiler options that the command line gave, a policy too if it is a single one; toprovar has its
    own defaults for the others."""
    pruning = ("start_scale", "scale_threshold", "layer_dimension", "entropy_source", "restoration")
    names = ("policy", "calibration", "keep_ratio", "target_speedup", *pruning, "mode", "strict")
    given = {name: getattr(arguments, name, None) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def painting_settings(arguments: argparse.Namespace, prompts: Sequence[str]) -> PaintingSettings:
    """What the command line of a command that paints ``prompts`` says."""
    return PaintingSettings(
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        prompts=tuple(prompts),
        seed=arguments.seed,
        options=given_options(arguments),
        out=arguments.out,
    )
