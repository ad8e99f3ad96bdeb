"""The results folder of a run: what it belongs to, finished batches, pictures; every file written whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor

from toprovar_compiler.errors import ArtifactError
from toprovar_compiler.evaluation.run_folder import claim, dump, read_json, whole, write_text
from toprovar_compiler.evaluation.units import Batch, Unit

FORMAT = "toprovar-evaluation"
FORMAT_VERSION = 1
TRUE_SCENES = "true-scenes"
"""In place of a policy's name: the suite's own pictures."""
_UNITS, _PICTURES, _TIMES = "units", "pictures", "times"
_FAST_PNG = 1  # zlib's fastest level: a third larger, several times faster


class Store:
    """One folder; any number of processes may write to it, each to files of its own.

    A batch is finished when its record is there, and its pictures are written before that.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, identity: Mapping[str, Any]) -> None:
        """Make the folder this run's, or check that it is.

        Args:
            identity: JSON values; what else the same figures could not be expected from.

        Raises:
            ArtifactError: the folder holds results of another run; both are named.
        """
        claim(self.folder, FORMAT, FORMAT_VERSION, identity)

    def has(self, name: str, batch: Batch) -> bool:
        """Whether the batch of this policy is finished."""
        return self._unit_path(name, batch).exists()

    def write_unit(self, name: str, batch: Batch, record: Mapping[str, Any]) -> None:
        """Raises ArtifactError, as everything here that writes: no room, no permission, no folder."""
        write_text(self._unit_path(name, batch), dump(record))

    def read_unit(self, name: str, batch: Batch) -> dict[str, Any]:
        """Raises ArtifactError: the file is missing or damaged."""
        return read_json(self._unit_path(name, batch))

    def read_units(self, name: str) -> list[dict[str, Any]]:
        """All finished batches of a policy, in order. Raises ArtifactError, as :meth:`read_unit`."""
        return [read_json(path) for path in sorted((self.folder / _UNITS / _folder(name)).glob("*.json"))]

    def write_pictures(self, name: str, units: Sequence[Unit], pictures: Tensor) -> None:
        """Pictures [B, 3, H, W] uint8, one PNG each."""
        arrays = pictures.permute(0, 2, 3, 1).cpu().numpy()
        paths = [self.picture_path(name, unit) for unit in units]
        with ThreadPoolExecutor() as pool:  # zlib works outside Python's lock
            list(pool.map(_write_png, paths, arrays))

    def read_pictures(self, name: str, units: Sequence[Unit]) -> Tensor:
        """[B, 3, H, W] uint8.

        Raises:
            ArtifactError: a picture is missing or damaged.
        """
        return torch.stack([_read_png(self.picture_path(name, unit)) for unit in units])

    def picture_path(self, name: str, unit: Unit) -> Path:
        return self.folder / _PICTURES / _folder(name) / f"{unit.name}.png"

    def write_times(self, turn: int, seconds: Mapping[str, float]) -> None:
        """What each contender took in one turn."""
        write_text(self._times_path(turn), dump(seconds))

    def read_times(self, turn: int) -> dict[str, float] | None:
        """None: this turn is still to be taken."""
        path = self._times_path(turn)
        return read_json(path) if path.exists() else None

    def write_text(self, name: str, text: str) -> Path:
        """A file of the folder itself; returns its path."""
        write_text(self.folder / name, text)
        return self.folder / name

    def _unit_path(self, name: str, batch: Batch) -> Path:
        return self.folder / _UNITS / _folder(name) / f"{batch.number:05d}.json"

    def _times_path(self, turn: int) -> Path:
        return self.folder / _TIMES / f"{turn:05d}.json"


def _folder(name: str) -> str:
    """A policy's name, with its options, as that of a folder."""
    return quote(name, safe="[]=,")


def _write_png(path: Path, array: Any) -> None:
    with whole(path) as unfinished:
        Image.fromarray(array).save(unfinished, format="PNG", compress_level=_FAST_PNG)


def _read_png(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            rgb = picture.convert("RGB")
    except OSError as error:
        raise ArtifactError(
            f"picture {path} is missing or damaged ({error}); remove the folder {_UNITS}/{path.parent.name} "
            "beside 'pictures' and run the command again"
        ) from error
    flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return flat.view(rgb.height, rgb.width, 3).permute(2, 0, 1)
