"""Parts on disk: what comes back, and what is refused by name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from toprovar_compiler.calibration.lessons import Lessons, lesson
from toprovar_compiler.calibration.parts import Parts
from toprovar_compiler.errors import ArtifactError, EvaluationError

IDENTITY = {"seed": 3, "weights": "abc"}
SCHEDULE = (1, 4, 16, 64)


def _lesson(seed: int, pictures: int = 2, layers: int = 2, schedule: tuple[int, ...] = SCHEDULE) -> Any:
    """Of heads that are drawn at random, at all scales but the first."""
    generator = torch.Generator().manual_seed(seed)
    entropies = {
        scale: torch.rand(pictures, layers, 3, tokens, generator=generator)
        for scale, tokens in enumerate(schedule)
        if scale
    }
    painted = torch.rand(pictures, 3, 24, 24, generator=generator)
    return lesson(entropies, painted, [seed + 1] * len(schedule))


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    made = Parts(tmp_path / "c.json.parts", IDENTITY)
    for batch in range(2):
        made.write("learned", batch, _lesson(batch))
    return made


def _path(parts: Parts, batch: int) -> Path:
    return parts.folder / "learned" / f"{batch:05d}.safetensors"


def test_what_was_written_comes_back(parts: Parts) -> None:
    assert parts.has("learned", 1)
    assert not parts.has("learned", 2)
    assert not parts.has("dense", 1)
    found = parts.read("learned", 1, dict)
    expected = _lesson(1)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_same_run_goes_on_and_another_is_refused(parts: Parts) -> None:
    assert Parts(parts.folder, IDENTITY).has("learned", 0)
    with pytest.raises(ArtifactError, match=r"c\.json\.parts require seed 3, got 4; pass another --out"):
        Parts(parts.folder, {**IDENTITY, "seed": 4})
    with pytest.raises(ArtifactError, match="require commit None, got 'f00'"):
        Parts(parts.folder, {**IDENTITY, "commit": "f00"})


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": "toprovar-evaluation"}')
    with pytest.raises(ArtifactError, match="requires format 'toprovar-calibration-parts', got another file"):
        Parts(tmp_path, IDENTITY)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run\.json requires JSON"):
        Parts(tmp_path, IDENTITY)


def test_removed_is_all_of_it(parts: Parts) -> None:
    parts.remove()
    assert not parts.folder.exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _other_batch(path: Path) -> None:
    shutil.copy(path.with_name("00001.safetensors"), path)


def _changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """The same file with other tensors."""

    def rewrite(path: Path) -> None:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(tensors)
        path.write_bytes(safetensors.torch.save(tensors, metadata))

    return rewrite


def _foreign(path: Path) -> None:
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (Path.unlink, "is missing; run the command again, in a folder that all processes share"),
        (_cut, "requires a safetensors file, got .*; remove it and run the command again"),
        (_emptied, "requires a safetensors file, got .*; remove it"),
        (_other_batch, "requires a part of this run, .*'batch': '0'.*got .*'batch': '1'.*; remove it"),
        (_foreign, "requires a part of this run, .*got {}; remove it"),
        (_changed(lambda part: part.pop("flops")), "is damaged .*flops.*; remove it"),
        (_changed(lambda part: part.pop("2.scatter")), r"is damaged .*2\.scatter.*; remove it"),
        (_changed(lambda part: part["2.mean"].fill_(torch.nan)), r"requires finite numbers, .*'2\.mean'"),
        (_changed(lambda part: part.update({"flops": torch.zeros(3)})), "is damaged .*FLOPs"),
        (_changed(lambda part: part["flops"].neg_()), "is damaged .*FLOPs"),
        (_changed(lambda part: part.update({"2.mean": torch.zeros(3)})), "is damaged .*moments"),
        (_changed(lambda part: part.update({"2.shape": torch.tensor([9, 9])})), "is damaged .*moments"),
        (_changed(lambda part: part.update({"2.maps": torch.zeros(2, 3)})), "is damaged .*maps"),
        (_changed(lambda part: part.update({"2.shape": torch.tensor([[1]])})), "is damaged"),
    ],
)
def test_a_part_that_is_not_whole_is_refused_by_name(
    harm: Callable[[Path], None], expected: str, parts: Parts
) -> None:
    harm(_path(parts, 0))
    with pytest.raises(ArtifactError, match=f"{re.escape(str(_path(parts, 0)))} {expected}"):
        parts.read("learned", 0, Lessons(SCHEDULE).add)
    parts.read("learned", 1, Lessons(SCHEDULE).add)


def test_parts_of_other_layers_do_not_merge(parts: Parts) -> None:
    parts.write("learned", 1, _lesson(1, layers=3))
    lessons = Lessons(SCHEDULE)
    parts.read("learned", 0, lessons.add)
    with pytest.raises(ArtifactError, match=r"00001\.safetensors is damaged .*moments"):
        parts.read("learned", 1, lessons.add)


def test_no_room_is_an_error_that_names_the_part(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        ArtifactError, match=r"00002\.safetensors cannot be written .No space left.*; make room"
    ):
        parts.write("learned", 2, _lesson(2))
    assert not parts.has("learned", 2)


def test_lessons_in_one_order_give_the_same_gates_bit_for_bit() -> None:
    made = [_lesson(seed, pictures) for seed, pictures in enumerate((3, 1, 2))]
    one, other = Lessons(SCHEDULE), Lessons(SCHEDULE)
    for part in made:
        one.add(part)
        other.add({name: tensor.clone() for name, tensor in part.items()})
    assert one.gates() == other.gates()
    assert one.gates().keys() == {2}, "of at least 16 tokens, with a scale after it"
    assert one.statistics() == other.statistics()
    assert [row["scale"] for row in one.statistics()] == [1, 2, 3]
    assert one.of_pictures()[3].shape == (2, 6)


def test_entropies_that_are_not_finite_are_refused() -> None:
    entropies = {1: torch.full((1, 2, 3, 4), torch.nan)}
    with pytest.raises(
        EvaluationError, match="requires finite entropies, got NaN or infinity at scale 1; try"
    ):
        lesson(entropies, torch.rand(1, 3, 24, 24), [1, 1])
