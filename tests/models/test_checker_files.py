"""The checker's weights on disk: a round trip, and a clear error for every kind of damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from examples.emojivar import WeightsError
from examples.emojivar.checker import Checker, load_checker, save_checker
from examples.emojivar.checker.files import INDEX_NAME, SHARD_NAME
from examples.emojivar.checker.net import SMOKE, CheckerNet


@pytest.fixture
def net() -> CheckerNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CheckerNet(SMOKE)


@pytest.fixture
def folder(net: CheckerNet, tmp_path: Path) -> Path:
    save_checker(net, tmp_path)
    return tmp_path


def edit_index(folder: Path, **fields: object) -> None:
    path = folder / INDEX_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_round_trip_rounds_matrices_alone(net: CheckerNet, folder: Path) -> None:
    checker = load_checker(folder=folder)
    assert isinstance(checker, Checker)
    assert not checker.net.training
    assert not any(parameter.requires_grad for parameter in checker.net.parameters())
    for name, value in checker.net.state_dict().items():
        original = net.state_dict()[name]
        expected = original.bfloat16().float() if original.dim() > 1 else original
        assert torch.equal(value, expected), name


def test_saving_loaded_weights_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    save_checker(load_checker(folder=folder).net, tmp_path / "again")
    for name in (INDEX_NAME, SHARD_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_fingerprint_follows_the_weights(net: CheckerNet, folder: Path, tmp_path: Path) -> None:
    first = load_checker(folder=folder)
    assert load_checker(folder=folder).fingerprint == first.fingerprint
    net.place.bias.data += 1
    save_checker(net, tmp_path / "other")
    assert load_checker(folder=tmp_path / "other").fingerprint != first.fingerprint


def test_loading_leaves_the_random_stream(folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    load_checker(folder=folder)
    assert torch.equal(torch.rand(2), expected)


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "word"), [(remove, "missing"), (truncate, "truncated"), (alter, "altered")]
)
def test_damaged_weights(folder: Path, damage: Callable[[Path], None], word: str) -> None:
    damage(folder / SHARD_NAME)
    with pytest.raises(WeightsError, match=word) as caught:
        load_checker(folder=folder)
    assert SHARD_NAME in str(caught.value)
    assert "git checkout" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"format": "emojivar"}, "format"),
        ({"version": 99}, "version"),
        ({"config": {"width": 3}}, "NetConfig"),
        ({"config": {"widths": [8, 8, 16, 16, 32], "trunk": 16}}, "foreign"),
        ({"labels": {"kinds": ["cat"]}}, "kinds"),
        ({"shards": {}}, "foreign"),
        ({"shards": {"../escape": {"bytes": 1, "sha256": ""}}}, "shards"),
    ],
)
def test_foreign_indexes(folder: Path, fields: dict[str, object], word: str) -> None:
    edit_index(folder, **fields)
    with pytest.raises(WeightsError, match=word) as caught:
        load_checker(folder=folder)
    assert INDEX_NAME in str(caught.value)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=INDEX_NAME):
        load_checker(folder=tmp_path)
