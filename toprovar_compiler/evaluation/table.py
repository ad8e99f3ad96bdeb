"""The records of one policy's pictures, as columns of sums per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toprovar_compiler.evaluation.bootstrap import Floats, per_prompt

Unit = dict[str, Any]


class Table:
    """The records of one policy's pictures, as columns.

    Args:
        units: the stored records of its batches, in order.
        prompts: how many there are in the run.
    """

    def __init__(self, units: Sequence[Unit], prompts: int) -> None:
        self.units, self.prompts = units, prompts
        self.rows: list[dict[str, Any]] = [row for unit in units for row in unit["pictures"]]
        self.prompt_of: NDArray[np.int64] = np.array([row["prompt"] for row in self.rows], dtype=np.int64)
        self.judged = "task" in self.rows[0]
        self.pictures = self.sums([1.0] * len(self.rows))

    def sums(self, values: Sequence[float]) -> Floats:
        """Of one value per picture, sums [prompts]."""
        return per_prompt(self.prompts, self.prompt_of, np.array(values, dtype=np.float64))

    def column(self, name: str) -> Floats | None:
        """Sums [prompts] of a metric; None where pictures do not have it."""
        return self._sums_or_none([row.get(name) for row in self.rows])

    def of_task(self, task: str) -> tuple[Floats, Floats]:
        """Correct pictures and all pictures of a task, [prompts] each."""
        asked = [float(row["task"] == task) for row in self.rows]
        right = [float(row["task"] == task and row["correct"]) for row in self.rows]
        return self.sums(right), self.sums(asked)

    def tasks(self) -> list[str]:
        """In the order of the prompts."""
        return list(dict.fromkeys(row["task"] for row in self.rows))

    def region(self, name: str, part: str) -> Floats | None:
        """Sums [prompts] over a region's pixels: "pixels", "squares" or "similarity"."""
        return self._sums_or_none([row["regions"][name][part] for row in self.rows])

    def features(self) -> Tensor:
        """[N, F] float64."""
        return torch.tensor([row["features"] for row in self.rows], dtype=torch.float64)

    def counted(self, name: str) -> Floats:
        """A count of whole batches, [prompts]: each picture has an equal part of its batch's."""
        parts = [
            unit["counts"][name] / len(unit["pictures"]) for unit in self.units for _ in unit["pictures"]
        ]
        return self.sums(parts)

    def _sums_or_none(self, values: Sequence[float | None]) -> Floats | None:
        known = [float(value) for value in values if value is not None]
        return self.sums(known) if len(known) == len(values) else None
