"""How times are taken, and what is recorded beside them."""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toprovar_compiler.environment import commit
from toprovar_compiler.environment import environment as package_environment

Call = Callable[[], Any]
# Median in seconds, and the first and third quartile.
Times = dict[str, Any]

LEAST_ROUNDS = 3  # fewer have no quartiles to speak of


def environment() -> dict[str, Any]:
    """Versions, devices, commit and command, as JSON-ready values."""
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    return {"command": command, "commit": commit(), **package_environment()}


def rounds(text: str) -> int:
    """The argument of ``--rounds``.

    Raises:
        argparse.ArgumentTypeError: it is no whole number, or too few for quartiles.
    """
    if not text.isdecimal() or int(text) < LEAST_ROUNDS:
        raise argparse.ArgumentTypeError(
            f"requires a whole number of at least {LEAST_ROUNDS}, for a median and quartiles, got {text!r}; "
            "9 is a good one"
        )
    return int(text)


def summarise(seconds: Sequence[float]) -> Times:
    """Median and quartiles of at least two times."""
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": median, "quartiles": [first, third]}


def interleaved(calls: Mapping[str, Call], count: int) -> dict[str, Times]:
    """Wall seconds of each call on the CPU, over ``count`` rounds; the calls take turns."""
    for call in calls.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: summarise(taken) for name, taken in times.items()}
