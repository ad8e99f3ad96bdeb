"""Prunes as a budget says, and compares with the dense pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from toprovar_compiler.calibration.bench import Bench
from toprovar_compiler.compiled_model import CompiledModel
from toprovar_compiler.errors import UnsupportedGraphError, UnsupportedModelError
from toprovar_compiler.evaluation.painter import to_bytes, to_floats
from toprovar_compiler.evaluation.picture_metrics import compare
from toprovar_compiler.evaluation.units import Batch
from toprovar_compiler.options import Options

_DENSE = "dense"


class Trials:
    """Needs the gates in :attr:`Parts.gates` once something is pruned."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._dense: dict[int, Tensor] = {}

    def paint_dense(self) -> None:
        """What all else is compared with: this process's pictures, [B, 3, H, W] uint8 of each batch."""
        compilation = CompiledModel(self.bench.model, Options(policy="dense"))

        def paint(batch: Batch) -> dict[str, Tensor]:
            return {"pictures": to_bytes(self.bench.paint(compilation, batch, _DENSE))}

        self.bench.finish(_DENSE, _DENSE, paint)
        device = next(self.bench.model.parameters()).device
        for batch in self.bench.mine:
            pictures = self.bench.parts.read(_DENSE, batch.number, lambda part: part["pictures"])
            self._dense[batch.number] = pictures.to(device)

    def run(
        self, keep_ratio: Sequence[float], label: str, again: bool = False, guidance_until: int | None = None
    ) -> None:
        """Paint this process's batches with a budget, and compare.

        Where guidance is to end and cannot, nothing is left out: the same pictures, of as many FLOPs.

        Raises:
            UnsupportedModelError: pictures are too small to compare.
        """
        start = min((s for s, ratio in enumerate(keep_ratio) if ratio < 1), default=len(keep_ratio) - 1)
        options = Options(
            keep_ratio=tuple(keep_ratio),
            start_scale=start,
            guidance_until=guidance_until,
            calibration=str(self.bench.parts.gates),
            strict=True,
        )
        compilation = CompiledModel(self.bench.model, options)

        def measure(batch: Batch) -> dict[str, Tensor]:
            compilation.session.counters.clear()
            try:
                pictures = self.bench.paint(compilation, batch, label)
            except UnsupportedGraphError:
                if min(keep_ratio) < 1:
                    raise
                return _nothing_left_out(len(batch.units))
            painted = to_floats(to_bytes(pictures))
            compared = compare(painted, to_floats(self._dense[batch.number]), None)
            if any(one["ssim"] is None for one in compared):
                raise UnsupportedModelError(
                    "calibration requires pictures that are large enough for SSIM, got "
                    f"{tuple(painted.shape[2:])} pixels; let generate enlarge them"
                )
            total = compilation.session.counters.total()
            return {
                "ssim": torch.tensor([one["ssim"] for one in compared], dtype=torch.float64),
                "flops": torch.tensor([total.flops_total, total.flops_computed]),
            }

        self.bench.finish(_stage(keep_ratio, guidance_until), label, measure, again)

    def ssim(self, keep_ratio: Sequence[float], guidance_until: int | None = None) -> Tensor:
        """[pictures] float64, to the dense pictures. All processes must have finished :meth:`run`."""
        found = [
            self.bench.parts.read(
                _stage(keep_ratio, guidance_until),
                batch.number,
                partial(_ssim_of, pictures=len(batch.units)),
            )
            for batch in self.bench.batches
        ]
        return torch.cat(found)

    def times_fewer(self, keep_ratio: Sequence[float], guidance_until: int | None = None) -> float:
        """FLOPs that were due over those computed."""
        stage = _stage(keep_ratio, guidance_until)
        found = [self.bench.parts.read(stage, batch.number, _flops_of) for batch in self.bench.batches]
        return sum(due for due, _ in found) / sum(computed for _, computed in found)


def _ssim_of(part: dict[str, Tensor], pictures: int) -> Tensor:
    ssim = part["ssim"]
    if ssim.shape != (pictures,) or ssim.dtype != torch.float64:
        raise ValueError(f"SSIM {list(ssim.shape)} of {pictures} pictures")
    return ssim


def _flops_of(part: dict[str, Tensor]) -> tuple[int, int]:
    due, computed = part["flops"].tolist()
    if not due >= computed > 0:
        raise ValueError(f"FLOPs {due}, {computed}")
    return due, computed


def _nothing_left_out(pictures: int) -> dict[str, Tensor]:
    return {"ssim": torch.ones(pictures, dtype=torch.float64), "flops": torch.tensor([1, 1])}


def _stage(keep_ratio: Sequence[float], guidance_until: int | None) -> str:
    """The name of the folder of what a budget gave."""
    kept = "kept-" + ",".join(f"{ratio:g}" for ratio in keep_ratio)
    return kept if guidance_until is None else f"{kept}-guided-until-{guidance_until}"
