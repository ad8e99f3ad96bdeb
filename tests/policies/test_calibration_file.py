"""Calibration files: what they hold, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.policies.calibrations import calibration, gate
from toprovar_compiler.errors import ArtifactError
from toprovar_compiler.policies import artifacts
from toprovar_compiler.policies.calibration import Plan, calibration_for, load_calibration

SCHEDULE = (1, 4, 9, 16, 36)


def _change(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_file_gives_back_what_was_saved(model: Any, calibration_file: Path) -> None:
    made = calibration(model)
    assert load_calibration(calibration_file) == made
    assert calibration_for(model, SCHEDULE, str(calibration_file)) == made


def test_a_calibration_of_one_plan_is_read_too(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    made = calibration(model, plans=(), record={})
    made.save(path)
    assert load_calibration(path) == made


@pytest.mark.parametrize("text", [None, "", "{", "[]", '"x"', "NaN", "{}", "[" * 100_000, "\xff\xfe"])
def test_what_is_no_calibration_file_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"calibration .*c\.json requires .*; make one with: toprovar "):
        load_calibration(path)


def test_a_file_cut_short_is_refused(calibration_file: Path) -> None:
    whole = calibration_file.read_bytes()
    for length in range(0, len(whole) - 2, 97):
        calibration_file.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="requires a JSON file"):
            load_calibration(calibration_file)


def test_a_folder_is_no_calibration(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="requires a JSON file"):
        load_calibration(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_calibration_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.json")
    with pytest.raises(
        ArtifactError, match=r"c\.json requires a JSON file, got a folder, a pipe or a device;"
    ):
        load_calibration(tmp_path / "c.json")


def test_a_file_that_is_too_large_is_refused_without_parsing_it(
    calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = calibration_file.stat().st_size
    monkeypatch.setattr(artifacts, "MOST_BYTES", size)
    load_calibration(calibration_file)
    monkeypatch.setattr(artifacts, "MOST_BYTES", size - 1)
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(
        ArtifactError, match=f"requires a JSON file, got more than {size - 1} bytes; make one"
    ):
        load_calibration(calibration_file)


@pytest.mark.parametrize("place", ["plan", "plans"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("times_fewer", 0.99),
        ("times_fewer", -2),
        ("times_fewer", float("nan")),
        ("times_fewer", "2"),
        ("ssim", 1.001),
        ("ssim", float("-inf")),
        ("ssim", True),
    ],
)
def test_plans_out_of_range_are_refused(place: str, name: str, value: Any, calibration_file: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        (content["plan"] if place == "plan" else content["plans"][1])[name] = value

    _change(calibration_file, change)
    with pytest.raises(ArtifactError, match=r"is damaged .*; make one with: toprovar calibrate"):
        load_calibration(calibration_file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "skipvar-decisions"},
            "requires kind 'toprovar-calibration' of schema 1, got .'skipvar",
        ),
        ({"schema": 2}, "of schema 1, got .'toprovar-calibration', 2"),
        ({"schedule": [1, 4, 9, 16]}, "is damaged"),
        ({"schedule": [1, 0, 9, 16, 36]}, "is damaged.*schedule"),
        ({"schedule": []}, "is damaged"),
        ({"sketch": [float("nan")]}, "is damaged"),
        ({"gates": {}}, "is damaged.*gates of scales \\[\\]"),
        ({"gates": []}, "is damaged"),
        ({"gates": None}, "is damaged"),
        ({"plan": None}, "is damaged"),
        ({"plans": 3}, "is damaged"),
        ({"record": 3}, "is damaged"),
    ],
    ids=str,
)
def test_a_damaged_file_is_refused_with_the_remedy(
    changes: dict[str, Any], message: str, calibration_file: Path
) -> None:
    _change(calibration_file, lambda content: content.update(changes))
    with pytest.raises(ArtifactError, match=f"{message}.*; make one with: toprovar calibrate"):
        load_calibration(calibration_file)


@pytest.mark.parametrize(
    "name", ["model", "fingerprint", "sketch", "schedule", "gates", "plan", "plans", "record"]
)
def test_every_part_is_needed(name: str, calibration_file: Path) -> None:
    _change(calibration_file, lambda content: content.pop(name))
    with pytest.raises(ArtifactError, match=f"is damaged .*{name}"):
        load_calibration(calibration_file)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("weights", float("nan")),
        ("centre", float("inf")),
        ("weights", None),
        ("weights", "x"),
        ("weights", 10**400),
    ],
    ids=["nan", "inf", "null", "text", "huge"],
)
def test_a_weight_that_is_no_finite_number_is_refused(part: str, value: Any, calibration_file: Path) -> None:
    _change(calibration_file, lambda content: content["gates"]["2"][part][1].__setitem__(3, value))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_calibration(calibration_file)


@pytest.mark.parametrize(
    "change",
    [
        lambda gates: gates["2"]["weights"].pop(),
        lambda gates: gates["2"]["centre"].pop(),
        lambda gates: gates["2"]["weights"][1].pop(),
        lambda gates: gates["2"]["centre"][1].pop(),
        lambda gates: gates["2"].update(weights=[], centre=[]),
        lambda gates: gates["2"].update(bias=float("nan")),
        lambda gates: gates["2"].pop("explained"),
        lambda gates: gates.update({"4": gates["3"]}),
        lambda gates: gates.update({"-1": gates["3"]}),
        lambda gates: gates.update({"two": gates["3"]}),
        lambda gates: gates.update({"2": {**gates["2"], "weights": [[1.0]], "centre": [[1.0]]}}),
    ],
    ids=range(11),
)
def test_gates_that_do_not_fit_are_refused(change: Any, calibration_file: Path) -> None:
    _change(calibration_file, lambda content: change(content["gates"]))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_calibration(calibration_file)


@pytest.mark.parametrize("scale", ["1", "2", "3"])
def test_every_scale_before_a_pruned_one_needs_a_gate(scale: str, calibration_file: Path) -> None:
    _change(calibration_file, lambda content: content["gates"].pop(scale))
    with pytest.raises(
        ArtifactError, match=r"is damaged .*plans that prune the scales \[2, 3, 4\], gates of"
    ):
        load_calibration(calibration_file)


def test_a_scale_that_runs_in_full_needs_no_gate_before_it(model: Any, tmp_path: Path) -> None:
    plan = Plan(1.5, 0.9, (1.0, 1.0, 1.0, 0.5, 1.0))
    made = calibration(model, gates={2: gate(3, 4)}, plan=plan, plans=())
    made.save(tmp_path / "one.json")
    assert load_calibration(tmp_path / "one.json") == made


@pytest.mark.parametrize("place", ["plan", "plans"])
@pytest.mark.parametrize(
    "ratios",
    [
        [1.0, 1.0, 0.5, 0.5],
        [1.0, 1.0, 0.5, 0.5, 0.5, 0.5],
        [1.0, 1.0, 0.0, 0.5, 0.5],
        [1.0, 1.0, 0.5, 1.5, 0.5],
        [1.0, 1.0, 0.5, -0.5, 0.5],
        [0.5, 1.0, 1.0, 1.0, 1.0],
        [],
        0.5,
    ],
    ids=str,
)
def test_plans_that_do_not_fit_are_refused(place: str, ratios: Any, calibration_file: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        plan = content["plan"] if place == "plan" else content["plans"][1]
        plan["keep_ratio"] = ratios

    _change(calibration_file, change)
    with pytest.raises(ArtifactError, match="is damaged"):
        load_calibration(calibration_file)


@pytest.mark.parametrize("until", [0, 5, -1, 2.0, "3", True])
def test_an_end_of_guidance_that_is_no_later_scale_is_refused(until: Any, calibration_file: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["plan"]["guidance_until"] = until

    _change(calibration_file, change)
    with pytest.raises(ArtifactError, match="is damaged"):
        load_calibration(calibration_file)


def test_a_file_from_before_guidance_could_end_says_that_it_does_not(calibration_file: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["plan"]["guidance_until"]

    _change(calibration_file, change)
    assert load_calibration(calibration_file).plan.guidance_until is None
