"""The checker's training program at its smoke size: it learns, resumes, and writes its accuracy table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.emojivar.atlas import Atlas
from examples.emojivar.checker import load_checker, train
from examples.emojivar.checker.accuracy import ANSWERS, measure
from examples.emojivar.checker.accuracy_table import JSON_NAME, MARKDOWN_NAME, table_of
from examples.emojivar.checker.files import INDEX_NAME, SHARD_NAME
from examples.emojivar.checker.net import SMOKE, CheckerNet
from examples.emojivar.prompts import TASKS
from examples.emojivar.training import parser, smoke

SMALL_RUN = ["--smoke", "--device", "cpu", "--batch", "2", "--steps", "2"]
STATE_NAME = "checker.state.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a few steps."""
    folder = tmp_path_factory.mktemp("checker")
    train.main([*SMALL_RUN, "--out", str(folder)])
    return folder


def arguments_of(*extra: str) -> argparse.Namespace:
    return smoke(parser("", 100).parse_args(["--smoke", "--device", "cpu", *extra]))


def test_it_learns() -> None:
    trainer = train.make_trainer(arguments_of("--batch", "4"))
    batch = trainer.feed.layouts[0]
    totals = [sum(trainer.step(train.WARM_UP, 0.0, batch).values()) for _ in range(6)]
    assert totals[-1] < 0.9 * totals[0]
    assert all(parameter.isfinite().all() for parameter in trainer.net.parameters())


def test_every_parameter_is_trained_once() -> None:
    net = CheckerNet(SMOKE)
    optimizers = train.make_optimizers(net)
    groups = [group["params"] for optimizer in optimizers.values() for group in optimizer.param_groups]
    trained = [id(parameter) for parameters in groups for parameter in parameters]
    assert sorted(trained) == sorted(id(parameter) for parameter in net.parameters())
    for group in optimizers["muon"].param_groups:
        assert all(parameter.dim() == 4 for parameter in group["params"])
        assert not {id(p) for p in group["params"]} & {id(p) for p in net.kinds.parameters()}


def test_it_writes_weights_and_their_table(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        INDEX_NAME,
        SHARD_NAME,
        STATE_NAME,
        JSON_NAME,
        MARKDOWN_NAME,
    }
    checker = load_checker(folder=trained)
    assert checker.net.config == SMOKE
    report = json.loads((trained / JSON_NAME).read_text())
    assert report["weights"] == checker.fingerprint
    for name in ("true_scenes", "damaged_scenes"):
        table = report[name]
        assert table["all"]["scenes"] == 12
        assert sum(row["scenes"] for group, row in table.items() if "object" in group) == 12
        assert sum(row["scenes"] for group, row in table.items() if "background" in group) == 12
        assert set(table["all"]) == {"scenes", *ANSWERS}
        assert all(0 <= table["all"][answer] <= 1 for answer in ANSWERS)
    assert list(report["composition_of_true_scenes"]["per_task"]) == list(TASKS)
    markdown = (trained / MARKDOWN_NAME).read_text()
    assert "| all | 12 |" in markdown
    assert checker.fingerprint in markdown


def test_the_table_is_measured_anew_alike(trained: Path, atlas: Atlas) -> None:
    written = json.loads((trained / JSON_NAME).read_text())
    assert table_of(measure(load_checker(folder=trained), atlas, 12)) == written["true_scenes"]


def test_it_resumes(trained: Path, tmp_path: Path) -> None:
    train.main([*SMALL_RUN, "--out", str(tmp_path)])
    (tmp_path / SHARD_NAME).unlink()
    train.main([*SMALL_RUN, "--out", str(tmp_path)])  # nothing left to do but to write the result
    once, again = (load_file(folder / SHARD_NAME) for folder in (trained, tmp_path))
    assert once.keys() == again.keys()
    for name, value in once.items():
        assert torch.equal(value, again[name]), name


def test_it_starts_from_given_weights(trained: Path) -> None:
    trainer = train.make_trainer(arguments_of("--init", str(trained)))
    given = load_checker(folder=trained).net.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in trainer.net.state_dict().items())
    assert all(parameter.requires_grad for parameter in trainer.net.parameters())
    assert trainer.net.training
