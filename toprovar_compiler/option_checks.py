"""What option values are checked with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Protocol

from toprovar_compiler.errors import OptionError

TO_THE_END = "end"
"""Guidance goes on to the last scale, whatever a plan says."""


class GuidanceOptions(Protocol):
    """The part of the options that :func:`check_guidance` reads."""

    @property
    def policy(self) -> str: ...
    @property
    def guidance_until(self) -> int | str | None: ...
    @property
    def guidance_rows(self) -> int | None: ...


class StartOptions(Protocol):
    """The part of the options that :func:`check_start_scale` reads."""

    @property
    def policy(self) -> str: ...
    @property
    def start_scale(self) -> int | None: ...


class RetentionOptions(Protocol):
    """The part of the options that :func:`check_retention` reads."""

    @property
    def policy(self) -> str: ...
    @property
    def keep_ratio(self) -> float | Sequence[float] | None: ...
    @property
    def target_speedup(self) -> float | None: ...
    @property
    def retention(self) -> str: ...
    @property
    def retention_range(self) -> Sequence[float] | None: ...
    @property
    def retention_temperature(self) -> float | None: ...
    @property
    def tile_floor(self) -> Sequence[float] | None: ...


def check_guidance(given: GuidanceOptions) -> None:
    """Where guidance ends.

    Raises:
        OptionError: a value out of range, or one that means nothing beside the others.
    """
    # What the rows of the first scale are, only its codes tell.
    if given.guidance_until in (None, TO_THE_END):
        return
    check_count("guidance_until", given.guidance_until, least=1)
    if given.policy in ("dense", "fastvar", "skipvar", "fixed-exit"):
        raise OptionError(
            f"guidance_until={given.guidance_until} requires 'toprovar' or one of its controls, got "
            f"{given.policy!r}; leave it out, or choose 'toprovar' (keep_ratio=1 prunes nothing)"
        )
    if given.guidance_rows not in (None, 2):
        raise OptionError(
            f"guidance_until={given.guidance_until} requires guidance_rows=2 or None, got "
            f"{given.guidance_rows}: one conditional and one unconditional row; leave one of them out"
        )


def check_retention(given: RetentionOptions) -> None:
    """How many tokens are kept by eq. 6, and which.

    Raises:
        OptionError: a value out of range, or one that means nothing beside the others.
    """
    _check_range(given)
    _check_temperature(given)
    _check_floor(given.tile_floor)
    if given.retention == "sampled" and given.policy == "random":
        raise OptionError(
            "retention='sampled' requires a policy whose order says something, got 'random', which draws "
            "already; leave it out"
        )
    for name, default in (("retention", "rank"), ("retention_range", None), ("tile_floor", None)):
        value = getattr(given, name)
        if value != default and given.policy in ("fastvar", "skipvar", "fixed-exit"):
            raise OptionError(
                f"{name}={value!r} requires a policy that ranks tokens for eq. 6, got {given.policy!r}; "
                "leave it out, or choose 'toprovar'"
            )


def _check_range(given: RetentionOptions) -> None:
    ends = [number for _, number in numbered("retention_range", given.retention_range)]
    if given.retention_range is None:
        return
    if len(ends) != 2 or not 0.0 <= ends[0] <= ends[1] <= 1.0:
        raise OptionError(
            "retention_range requires two numbers in [0, 1], the first not above the second, got "
            f"{given.retention_range!r}"
        )
    for name in ("keep_ratio", "target_speedup"):
        value = getattr(given, name)
        if value is not None:
            raise OptionError(
                f"retention_range={given.retention_range!r} requires {name}=None, got {value!r}: each of "
                "them sets the budget; leave one out"
            )


def _check_temperature(given: RetentionOptions) -> None:
    asked = given.retention_temperature
    for _, temperature in numbered("retention_temperature", asked):
        if isinstance(asked, Sequence) or temperature <= 0:
            raise OptionError(f"retention_temperature requires one number above 0 or None, got {asked!r}")
    if asked is not None and given.retention != "sampled":
        raise OptionError(
            f"retention_temperature={asked!r} requires retention='sampled', got {given.retention!r}, which "
            "draws nothing; leave it out"
        )


def _check_floor(floor: Sequence[float] | None) -> None:
    numbers = [number for _, number in numbered("tile_floor", floor)]
    whole = len(numbers) == 2 and numbers[0] >= 1 and numbers[0].is_integer()
    if floor is not None and not (whole and 0.0 < numbers[1] <= 1.0):
        raise OptionError(
            "tile_floor requires (side, share), a whole number of at least 1 and a number in (0, 1], got "
            f"{floor!r}"
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise OptionError(f"{name} requires one of {listed}, got {value!r}")


def check_count(name: str, value: object, least: int, optional: bool = True) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        or_none = " or None" if optional else ""
        raise OptionError(f"{name} requires a whole number of at least {least}{or_none}, got {value!r}")


def numbered(name: str, value: object) -> list[tuple[str, float]]:
    """The numbers in an option with their places in it; refuses what is not a finite number."""
    if value is None:
        return []
    single = isinstance(value, Real)
    items = [value] if single else value
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence) or not items:
        raise OptionError(f"{name} requires a number or a sequence of numbers, got {value!r}")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, Real) or not math.isfinite(item):
            raise OptionError(f"{name} requires finite numbers, got {item!r}")
    return [("" if single else f"[{i}]", float(item)) for i, item in enumerate(items)]


def check_start_scale(options: StartOptions, scales: int) -> None:
    """Whether pruning starts at one of the ``scales`` that ran.

    Raises:
        OptionError: it starts later.
    """
    start = options.start_scale
    if options.policy != "dense" and start is not None and start >= scales:
        raise OptionError(
            f"start_scale requires a scale that the model runs, got {start} for one of {scales} scales "
            f"(0 to {scales - 1}); choose a smaller one"
        )
