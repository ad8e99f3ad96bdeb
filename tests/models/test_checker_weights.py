"""The checker that is shipped: its accuracy table is its own, and it reads true scenes right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from examples.emojivar.atlas import read_atlas
from examples.emojivar.checker import Checker, composition, load_checker
from examples.emojivar.checker.accuracy import SCENES, SEED, Marks, measure
from examples.emojivar.checker.accuracy_table import JSON_NAME, MARKDOWN_NAME, table_of
from examples.emojivar.weights import ASSETS

LEAST_RIGHT = 0.99
LEAST_OVERLAP = 0.95  # of masks, as intersection over union
OTHER_SEED = 12  # of scenes that the table was not made of


@pytest.fixture(scope="module")
def checker() -> Checker:
    return load_checker()


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ASSETS / JSON_NAME).read_text())
    return found


@pytest.fixture(scope="module")
def marks(checker: Checker) -> list[Marks]:
    return measure(checker, read_atlas(), scenes=48, seed=OTHER_SEED)


def test_the_table_is_that_of_these_weights(checker: Checker, table: dict[str, Any]) -> None:
    assert table["weights"] == checker.fingerprint
    assert checker.fingerprint in (ASSETS / MARKDOWN_NAME).read_text()
    assert table["seed"] == SEED
    assert table["true_scenes"]["all"]["scenes"] == SCENES


@pytest.mark.parametrize("scenes", ["true_scenes", "damaged_scenes"])
def test_the_table_says_that_it_is_right(table: dict[str, Any], scenes: str) -> None:
    for group, row in table[scenes].items():
        for answer in ("kind", "place", "hue", "background", "count", "whole scene"):
            assert row.get(answer, 1.0) >= LEAST_RIGHT, (group, answer)
        assert row["mask IoU"] >= LEAST_OVERLAP, group
    assert min(table["composition_of_true_scenes"]["per_task"].values()) >= LEAST_RIGHT


def test_it_reads_other_true_scenes(marks: list[Marks]) -> None:
    row = table_of(marks)["all"]
    assert row["whole scene"] >= LEAST_RIGHT
    assert row["mask IoU"] >= LEAST_OVERLAP


def test_true_scenes_have_a_full_score(marks: list[Marks]) -> None:
    assert composition([each.score for each in marks])["overall"] >= LEAST_RIGHT
