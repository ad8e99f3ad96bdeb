"""What to keep: policies, and the parts that they are made of."""

from __future__ import annotations

from collections.abc import Callable

from toprovar_compiler.options import Options, PolicyName
from toprovar_compiler.policies.base import Policy
from toprovar_compiler.policies.dense import DensePolicy
from toprovar_compiler.policies.fastvar import FastvarPolicy
from toprovar_compiler.policies.fixed_exit import FixedExitPolicy
from toprovar_compiler.policies.oracle import OraclePolicy
from toprovar_compiler.policies.rankings import InvertedPolicy, RandomPolicy
from toprovar_compiler.policies.skipvar import SkipvarPolicy
from toprovar_compiler.policies.toprovar import ToprovarPolicy

_POLICIES: dict[PolicyName, Callable[[Options, tuple[int, ...] | None], Policy]] = {
    "toprovar": ToprovarPolicy,
    "dense": lambda options, schedule: DensePolicy(),
    "fastvar": FastvarPolicy,
    "skipvar": SkipvarPolicy,
    "fixed-exit": FixedExitPolicy,
    "random": RandomPolicy,
    "inverted": InvertedPolicy,
    "oracle": OraclePolicy,
}


def make_policy(options: Options, schedule: tuple[int, ...] | None) -> Policy:
    """The policy that ``options.policy`` names, for a model of this schedule (tokens per scale, or None)."""
    return _POLICIES[options.policy](options, schedule)


__all__ = ["DensePolicy", "Policy", "ToprovarPolicy", "make_policy"]
