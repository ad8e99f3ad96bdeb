"""What to keep: policies, and the parts that they are made of."""

from __future__ import annotations

from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Policy
from toprovar_compiler.policies.dense import DensePolicy
from toprovar_compiler.policies.toprovar import ToprovarPolicy


def make_policy(options: Options, schedule: tuple[int, ...] | None) -> Policy:
    """The policy that ``options.policy`` names, for a model of this schedule (tokens per scale, or None)."""
    if options.policy == "dense":
        return DensePolicy()
    return ToprovarPolicy(options, schedule)


__all__ = ["DensePolicy", "Policy", "ToprovarPolicy", "make_policy"]
