"""Weights on disk: a round trip, and a clear error for every kind of damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from examples.emojivar import EmojiVAR, WeightsError, load
from examples.emojivar.weights import ASSETS, INDEX_NAME, MAX_SHARD_BYTES, save

MEGABYTE = 1_000_000


@pytest.fixture
def folder(small_model: Callable[..., EmojiVAR], tmp_path: Path) -> Path:
    """A small model's weights."""
    save(small_model(torch.float32), tmp_path)
    return tmp_path


def shard_of(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def edit_index(folder: Path, **fields: object) -> None:
    path = folder / INDEX_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_released_shards_keep_their_limits() -> None:
    sizes = [path.stat().st_size for path in ASSETS.glob("*.safetensors")]
    assert sizes
    assert max(sizes) <= MAX_SHARD_BYTES == 16 * MEGABYTE
    assert sum(sizes) <= 48 * MEGABYTE
    assert not [path for path in ASSETS.iterdir() if path.suffix in (".pt", ".pkl", ".npz", ".npy", ".bin")]


def test_round_trip_in_float32_is_exact(small_model: Callable[..., EmojiVAR], tmp_path: Path) -> None:
    model = small_model(torch.float32)
    save(model, tmp_path, dtype=torch.float32)
    restored = load(folder=tmp_path)
    assert not restored.training
    assert not any(parameter.requires_grad for parameter in restored.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name


def test_saving_loaded_weights_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    save(load(folder=folder), again)
    assert (again / INDEX_NAME).read_bytes() == (folder / INDEX_NAME).read_bytes()


def test_loading_leaves_the_random_stream(folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    load(folder=folder)
    assert torch.equal(torch.rand(2), expected)


def test_a_dtype_must_be_floating(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"torch\.int8"):
        load(dtype=torch.int8, folder=folder)


def remove_shard(folder: Path) -> None:
    shard_of(folder).unlink()


def truncate_shard(folder: Path) -> None:
    shard_of(folder).write_bytes(shard_of(folder).read_bytes()[:-10])


def alter_shard(folder: Path) -> None:
    data = bytearray(shard_of(folder).read_bytes())
    data[-1] ^= 1
    shard_of(folder).write_bytes(data)


def replace_by_folder(folder: Path) -> None:
    shard_of(folder).unlink()
    shard_of_name = json.loads((folder / INDEX_NAME).read_text())["shards"]
    (folder / next(iter(shard_of_name))).mkdir()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (remove_shard, "missing"),
        (truncate_shard, "truncated"),
        (alter_shard, "altered"),
        (replace_by_folder, "cannot be read"),
    ],
)
def test_damaged_shards(folder: Path, damage: Callable[[Path], None], word: str) -> None:
    name = shard_of(folder).name
    damage(folder)
    with pytest.raises(WeightsError, match=word) as caught:
        load(folder=folder)
    assert name in str(caught.value)
    assert "git checkout" in str(caught.value)


def test_a_shard_that_is_no_safetensors(folder: Path) -> None:
    import hashlib

    data = b"these are not tensors"
    shard_of(folder).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_index(folder, shards={shard_of(folder).name: entry})
    with pytest.raises(WeightsError, match="requires safetensors"):
        load(folder=folder)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"format": "other"}, "format"),
        ({"version": 99}, "version"),
        ({"config": {"width": 3, "colour": 1}}, "Config"),
        ({"config": None}, "config"),
        ({"vocabulary": ["a", "b"]}, "vocabulary"),
        ({"shards": {}}, "foreign"),
        ({"shards": {"../escape": {"bytes": 1, "sha256": ""}}}, "shards"),
        ({"shards": {"a": 3}}, "shards"),
    ],
)
def test_foreign_indexes(folder: Path, fields: dict[str, object], word: str) -> None:
    edit_index(folder, **fields)
    with pytest.raises(WeightsError, match=word) as caught:
        load(folder=folder)
    assert INDEX_NAME in str(caught.value)


def test_an_index_that_is_no_json(folder: Path) -> None:
    (folder / INDEX_NAME).write_bytes(b"\xff\x00")
    with pytest.raises(WeightsError, match="JSON"):
        load(folder=folder)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=INDEX_NAME):
        load(folder=tmp_path)


def test_weights_of_another_size(small_model: Callable[..., EmojiVAR], tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    save(small_model(torch.float32), one)
    save(small_model(torch.float32, width=48), other)
    for path in one.glob("*.safetensors"):
        shutil.copy(path, other)
    index = json.loads((one / INDEX_NAME).read_text())
    edit_index(other, shards=index["shards"])
    with pytest.raises(WeightsError, match="foreign"):
        load(folder=other)
