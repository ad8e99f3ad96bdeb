"""The entropy gate: which tokens of a row are kept.

Plain torch operations, the same on CPU and CUDA: a stable sort, so that equal entropies are settled by the
token index and a run repeats bitwise, and no value is read back to the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy_gate(entropy: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` lowest-entropy tokens of each row, in ascending token order.

    Rank form of equations 5 and 6 of the paper: the order within a row decides, the budget comes from
    outside. Tokens whose entropy is NaN or infinite rank last; ties go to the lower token index.

    entropy `[G, N]` floating -> index `[G, keep]` int64. Raises nothing; callers check the arguments
    (:func:`toprovar_compiler.kernels.checks.check_gate`).
    """
    ranked = torch.where(entropy.isfinite(), entropy, math.inf)
    order = torch.sort(ranked, dim=-1, stable=True).indices
    return torch.sort(order[:, :keep], dim=-1).values


def entropy_gate_reference(entropy: Tensor, keep: int) -> Tensor:
    """The definition of :func:`entropy_gate`, token by token. `[G, N]` -> `[G, keep]` int64."""
    rows = []
    for row in entropy.tolist():
        ranked = sorted(range(len(row)), key=lambda token: (not math.isfinite(row[token]), row[token], token))
        finite = [token for token in ranked if math.isfinite(row[token])]
        rest = sorted(token for token in ranked if not math.isfinite(row[token]))
        rows.append(sorted((finite + rest)[:keep]))
    return torch.tensor(rows, dtype=torch.int64, device=entropy.device).reshape(entropy.shape[0], keep)
