"""What CUDA graphs do to a function's results, without CUDA: they always lie where they lay at first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toprovar_compiler.cuda_graphs import Recorded


class Recorder:
    """Records functions as :mod:`toprovar_compiler.cuda_graphs` does, and counts their runs."""

    def __init__(self) -> None:
        self.recorded = self.runs = 0

    def __call__(
        self, function: Recorded, fixed: Sequence[int], outputs: int, device: torch.device
    ) -> Recorded:
        self.recorded += 1
        memory: list[Tensor] = []

        def run(inputs: list[Tensor]) -> list[Tensor]:
            self.runs += 1
            assert all(tensor.device == device for tensor in inputs)
            results = function(inputs)
            assert not inputs
            assert len(results) == outputs
            if not memory:
                memory.extend(result.clone() for result in results)
            for place, result in zip(memory, results, strict=True):
                place.copy_(result)
            return [place.view_as(place) for place in memory]

        return run
