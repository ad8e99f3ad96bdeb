"""Does what is still to do of a calibration, in this process's share of the batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from toprovar_compiler.calibration.parts import Parts
from toprovar_compiler.cli_model import paint
from toprovar_compiler.cli_progress import Progress
from toprovar_compiler.compiled_model import CompiledModel
from toprovar_compiler.errors import EvaluationError, ToprovarError
from toprovar_compiler.evaluation.processes import Processes
from toprovar_compiler.evaluation.units import Batch


@dataclass(frozen=True)
class Bench:
    """A model, its prompts in batches that are dealt out to processes, and what is finished of them.

    Every batch leaves a part on disk and all processes read all parts, in the batches' order: who painted
    what changes nothing.
    """

    model: nn.Module
    batches: Sequence[Batch]
    processes: Processes
    parts: Parts

    @property
    def mine(self) -> list[Batch]:
        """This process's share."""
        return self.processes.share(self.batches)

    def finish(
        self, stage: str, label: str, make: Callable[[Batch], dict[str, Tensor]], again: bool = True
    ) -> None:
        """Make the parts of this process's batches that are not there yet.

        Args:
            stage: name of the parts' folder.
            label: what is painted, for the progress.
            again: also make the first one if it is there, and keep the one that is. Graphs are compiled for
                the sizes that come first, and a process that goes on must meet them in the same order as
                one that begins.
        """
        due = [batch for batch in self.mine if not self.parts.has(stage, batch.number)]
        begun = [batch for batch in self.mine if batch in due or (again and batch == self.mine[0])]
        with Progress(len(begun), show=self.processes.rank == 0) as progress:
            for batch in begun:
                progress.step(f"{label}: {batch.units[0].text}")
                made = make(batch)
                if batch in due:
                    self.parts.write(stage, batch.number, made)

    def paint(self, compilation: CompiledModel, batch: Batch, label: str) -> Tensor:
        """Pictures [B, 3, H, W] float32 of the batch's B units.

        Args:
            label: what they are painted for, for messages.

        Raises:
            EvaluationError: the model's own code failed, or a picture is not finite.
            ToprovarError: it gives no pictures, or cannot be pruned as asked.
        """
        where = f"{label}, batch {batch.number}, first prompt {batch.units[0].text!r}"
        try:
            with compilation.active(self.model):
                pictures = paint(self.model, batch.texts, batch.seed)
        except ToprovarError:
            raise
        except Exception as error:
            raise EvaluationError(
                f"calibration requires a model that paints its prompts, got {type(error).__name__}: {error} "
                f"({where}); take out what it cannot paint, or mend it: --traceback shows where"
            ) from error
        pictures = pictures[: len(batch.units)].detach().float()
        if not bool(pictures.isfinite().all()):
            raise EvaluationError(
                f"calibration requires finite pictures, got NaN or infinity ({where}); try another --dtype"
            )
        return pictures
