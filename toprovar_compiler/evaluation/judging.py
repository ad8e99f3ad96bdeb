"""Makes the records that results are made of: what a suite and the metrics say of each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from toprovar_compiler.errors import EvaluationError
from toprovar_compiler.evaluation.painter import to_floats
from toprovar_compiler.evaluation.picture_metrics import compare
from toprovar_compiler.evaluation.suite import Suite, Verdict
from toprovar_compiler.evaluation.units import Unit


@dataclass(frozen=True)
class Reference:
    """Dense pictures [B, 3, H, W] float32 in [0, 1]; their sprites [B, H, W] bool, if a suite finds them."""

    pictures: Tensor
    foreground: Tensor | None


class Judge:
    """Judges the pictures of a batch.

    Args:
        suite: None where the model has none: verdicts, features and regions are left out then.
    """

    def __init__(self, suite: Suite | None) -> None:
        self.suite = suite

    def reference(self, dense: Tensor) -> Reference:
        """From dense pictures [B, 3, H, W] uint8."""
        pictures = to_floats(dense)
        if self.suite is None:
            return Reference(pictures, None)
        return Reference(pictures, self._checked("foreground", self.suite.foreground(pictures), pictures))

    def records(
        self, units: Sequence[Unit], pictures: Tensor, reference: Reference | None
    ) -> list[dict[str, Any]]:
        """One per picture.

        Args:
            units: B of them.
            pictures: [B, 3, H, W] float32 in [0, 1].
            reference: of the same seeds; None for true scenes, which have none.

        Raises:
            EvaluationError: the suite gives something else than one answer per picture.
        """
        records: list[dict[str, Any]] = [{"prompt": unit.prompt, "sample": unit.sample} for unit in units]
        if reference is not None:
            compared = compare(pictures, reference.pictures, reference.foreground)
            for record, measured in zip(records, compared, strict=True):
                record.update(measured)
        if self.suite is None:
            return records
        verdicts = self.suite.score([unit.text for unit in units], pictures)
        features = self._checked("features", self.suite.features(pictures), pictures).float()
        if len(verdicts) != len(units):
            raise EvaluationError(
                f"suite {self.suite.name} requires one verdict per picture, got {len(verdicts)} for "
                f"{len(units)} pictures; mend its function score"
            )
        for record, verdict, row in zip(records, verdicts, features.tolist(), strict=True):
            task, correct, reason = Verdict(*verdict)
            record.update(task=task, correct=bool(correct), reason=reason, features=row)
        return records

    def _checked(self, what: str, given: Tensor, pictures: Tensor) -> Tensor:
        shape = (len(pictures), *pictures.shape[2:]) if what == "foreground" else (len(pictures),)
        if given.shape[: len(shape)] != shape or not bool(given.isfinite().all()):
            name = self.suite.name if self.suite else None
            raise EvaluationError(
                f"suite {name} requires finite {what} whose shape begins with {list(shape)}, got "
                f"{list(given.shape)}; mend its function {what}"
            )
        return given.to(pictures.device)
