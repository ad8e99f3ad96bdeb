"""Finished parts of a calibration on disk: the sums of each batch alone, whoever made them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from toprovar_compiler.errors import ArtifactError
from toprovar_compiler.evaluation.run_folder import claim, dump, whole

FORMAT = "toprovar-calibration-parts"
FORMAT_VERSION = 1
GATES = "gates.json"
_SUFFIX = ".safetensors"

Made = TypeVar("Made")


class Parts:
    """A folder of safetensors files, one per stage and batch; any number of processes may write to it.

    Args:
        folder: made where it is missing.
        identity: JSON values; what else the same numbers could not be expected from.

    Raises:
        ArtifactError: the folder belongs to another calibration, or cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        run = claim(folder, FORMAT, FORMAT_VERSION, identity)
        self._run = hashlib.sha256(dump(run).encode()).hexdigest()

    @property
    def gates(self) -> Path:
        """Where the gates stand that pruned pictures are painted with."""
        return self.folder / GATES

    def has(self, stage: str, batch: int) -> bool:
        """Whether that part is finished."""
        return self._path(stage, batch).exists()

    def write(self, stage: str, batch: int, tensors: Mapping[str, Tensor]) -> None:
        """Raises ArtifactError: no room, no permission."""
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = safetensors.torch.save(contiguous, self._metadata(stage, batch))
        with whole(self._path(stage, batch)) as unfinished:
            unfinished.write_bytes(content)

    def read(self, stage: str, batch: int, parse: Callable[[dict[str, Tensor]], Made]) -> Made:
        """What ``parse`` makes of a part's tensors.

        Raises:
            ArtifactError: the file is missing, damaged, or of another run, stage or batch.
        """
        path = self._path(stage, batch)
        remedy = "remove it and run the command again"
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                found = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path} is missing; run the command again, in a folder that all processes share"
            ) from error
        except (OSError, safetensors.SafetensorError) as error:
            raise ArtifactError(f"{path} requires a safetensors file, got {error}; {remedy}") from error
        wanted = self._metadata(stage, batch)
        if found != wanted:
            raise ArtifactError(f"{path} requires a part of this run, {wanted}, got {found}; {remedy}")
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ArtifactError(f"{path} requires finite numbers, got others in {name!r}; {remedy}")
        try:
            return parse(tensors)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({error!r}); {remedy}") from error

    def remove(self) -> None:
        """All of it: what it was for is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, stage: str, batch: int) -> Path:
        return self.folder / stage / f"{batch:05d}{_SUFFIX}"

    def _metadata(self, stage: str, batch: int) -> dict[str, str]:
        return {"format": FORMAT, "run": self._run, "stage": stage, "batch": str(batch)}
