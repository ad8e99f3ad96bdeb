"""What an evaluation compares: policies, each with options of its own if need be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import PolicyName, parse_options

DENSE = "dense"
"""The policy that the others are compared with."""
_STRENGTHS = ("keep_ratio", "retention_range", "start_scale", "drop_scales", "target_speedup")
_FORM = "write it as NAME or NAME[option=value,...], for example toprovar[keep_ratio=0.5,restoration=bypass]"


@dataclass(frozen=True)
class Variant:
    """A policy with all its options; ``name`` is what the command line called it.

    Attributes:
        options: the compiler's, all but the policy.
    """

    name: str
    policy: str
    options: Mapping[str, Any]


def parse_variants(names: Sequence[str] | None, options: Mapping[str, Any]) -> tuple[Variant, ...]:
    """What to compare, each once and the plain dense policy first: it is painted in any case.

    Args:
        names: as :func:`split_names` gives them; None for all policies, as they are.
        options: of all of them, unless a name says otherwise.

    Raises:
        OptionError: an unknown policy, an option that is unknown or out of range, a name of another form.
    """
    wanted = dict.fromkeys((DENSE, *(get_args(PolicyName) if names is None else names)))
    return tuple(_variant(name, options) for name in wanted)


def split_names(text: str) -> list[str]:
    """Names between commas; commas inside brackets belong to a name."""
    names, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            names.append("")
        else:
            names[-1] += letter
    return ["".join(name.split()) for name in names]


def line_of(name: str) -> str:
    """A variant's name without how strongly it prunes: those that share it are one line over speed."""
    policy, _, inner = name.partition("[")
    kept = [part for part in split_names(inner[:-1]) if part and part.partition("=")[0] not in _STRENGTHS]
    return f"{policy}[{','.join(kept)}]" if kept else policy


def _variant(name: str, options: Mapping[str, Any]) -> Variant:
    policy, bracket, inner = name.partition("[")
    if bracket and not inner.endswith("]"):
        raise OptionError(f"policy {name!r} requires a closing bracket at its end; {_FORM}")
    own = dict(_assignment(name, part) for part in split_names(inner[:-1])) if bracket else {}
    if "policy" in own:
        raise OptionError(f"policy {name!r} requires options other than the policy itself; {_FORM}")
    variant = Variant(name, policy, {**options, **own})
    parse_options({**variant.options, "policy": policy})
    return variant


def _assignment(name: str, part: str) -> tuple[str, Any]:
    """``keep_ratio=0.5`` as a pair; what is no JSON value is text."""
    option, equals, value = part.partition("=")
    if not (option and equals and value):
        raise OptionError(f"policy {name!r} requires option=value, got {part!r}; {_FORM}")
    try:
        return option, json.loads(value)
    except ValueError:
        return option, value
