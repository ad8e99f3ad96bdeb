"""Fitting SkipVAR's decision models, and the files that hold them."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.toy_generators import ClassVAR, make
from toprovar_compiler.errors import ArtifactError, OptionError, UnsupportedModelError
from toprovar_compiler.policies.skipvar_decisions import (
    Decisions,
    decisions_for,
    fingerprint,
    load_decisions,
)
from toprovar_compiler.policies.skipvar_fit import Fitting, constant, fit_regression, label, main

SIDES = (1, 2, 3, 4, 6)
SCHEDULE = tuple(side * side for side in SIDES)


def _decisions(model: Any, **changes: Any) -> Decisions:
    values: dict[str, Any] = {
        "model": type(model).__name__,
        "fingerprint": fingerprint(model),
        "decision_scale": 1,
        "scale_weights": (1.0,) * 5,
        "threshold": 0.84,
        "samples": 3,
        "skip": constant(1),
        "replace": constant(2),
    }
    return Decisions(**{**values, **changes})


@pytest.mark.parametrize("count", range(4))
def test_a_constant_model_says_its_number_of_everything(count: int) -> None:
    assert constant(count).predict(torch.tensor([[0.0, 0.0], [1e2, -1e2]])) == [count, count]


def _cloud(count: int = 60) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(0)
    labels = [i % 3 for i in range(count)]
    features = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    features[:, 0] += torch.tensor(labels) * 1.5
    features[:, 1] = features[:, 1] * 40 + 7
    return features, labels


def test_the_fit_is_where_the_penalised_loss_has_no_slope() -> None:
    features, labels = _cloud()
    found = fit_regression(features, labels)
    x = (features - features.mean(0)) / features.std(0, unbiased=False)
    weights = torch.tensor(found.weights, dtype=torch.float64)
    p = (x @ weights.t() + torch.tensor(found.bias, dtype=torch.float64)).softmax(1)
    wrong = p - torch.nn.functional.one_hot(torch.tensor(labels), 4)
    slope = wrong.t() @ x + weights
    assert float(slope.abs().max()) < 1e-3 * len(labels)
    assert float(wrong.sum(0).abs().max()) < 1e-3 * len(labels)
    right = sum(a == b for a, b in zip(found.predict(features), labels, strict=True))
    assert right > len(labels) / 2, "three classes 1.5 deviations apart"
    assert 3 not in found.predict(features * 100), "no picture had this label"


def test_one_label_and_a_feature_that_does_not_vary_are_fitted_too() -> None:
    found = fit_regression(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), [2, 2])
    assert found.predict(torch.tensor([[5.0, -9.0]])) == [2]
    assert min(found.spread) > 0


@pytest.mark.parametrize(
    ("similarities", "count"),
    [([0.9, 0.85, 0.8], 2), ([0.8, 0.9, 0.9], 0), ([0.84, 0.84, 0.84], 3), ([0.9, 0.1, 0.9], 1)],
)
def test_a_label_is_the_largest_number_up_to_which_all_are_alike(
    similarities: list[float], count: int
) -> None:
    assert label(similarities, 0.84) == count


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    model = make(ClassVAR)
    decisions = _decisions(model, skip=fit_regression(*_cloud()))
    decisions.save(tmp_path / "d.json")
    assert load_decisions(tmp_path / "d.json") == decisions
    assert decisions_for(model, SCHEDULE, str(tmp_path / "d.json")) == decisions


def test_the_fingerprint_tells_architectures_apart_and_not_dtypes() -> None:
    model = make(ClassVAR)
    found = fingerprint(model)
    assert found == fingerprint(make(ClassVAR, seed=1, dtype=torch.bfloat16))
    assert found != fingerprint(make(ClassVAR, depth=4))
    assert found != fingerprint(make(ClassVAR, patch_nums=(1, 2, 3, 4, 5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "calibration"}, "requires kind 'skipvar-decisions' of schema 1, got .'calibration', 1"),
        ({"schema": 2}, "of schema 1, got .'skipvar-decisions', 2"),
        ({"features": ["a"]}, "is damaged"),
        ({"decision_scale": 0}, "is damaged.*decision_scale 0"),
        ({"decision_scale": 4}, "is damaged.*decision_scale 4"),
        ({"scale_weights": []}, "is damaged"),
        ({"skip": None}, "is damaged"),
        ({"skip": {}}, "is damaged.*centre"),
        ({"threshold": float("nan")}, "is damaged"),
    ],
    ids=str,
)
def test_a_damaged_file_is_refused_with_the_remedy(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "d.json"
    _decisions(make(ClassVAR)).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=f"{message}.*fit one with: python -m"):
        load_decisions(path)


@pytest.mark.parametrize("part", ["centre", "spread", "weights", "bias"])
def test_a_regression_of_other_sizes_is_refused(part: str, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    _decisions(make(ClassVAR)).save(path)
    content = json.loads(path.read_text())
    content["replace"][part] = content["replace"][part][:-1]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_decisions(path)


@pytest.mark.parametrize("text", [None, "{", "[]", '"x"'])
def test_what_is_no_decision_file_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArtifactError, match="decision model .* requires"):
        load_decisions(path)


def test_a_file_of_another_model_is_refused_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    _decisions(make(ClassVAR, depth=4)).save(path)
    model = make(ClassVAR)
    with pytest.raises(ArtifactError, match=r"requires the model that it was fitted for \(ClassVAR, .*got"):
        toprovar_compiler.compile(model, policy="skipvar", decisions=str(path))
    with pytest.raises(UnsupportedModelError):
        toprovar_compiler.summary(model)


def test_without_a_file_the_remedy_is_named() -> None:
    with pytest.raises(ArtifactError, match="requires a decision model for ClassVAR, got none.*skipvar_fit"):
        toprovar_compiler.compile(make(ClassVAR), policy="skipvar")


def test_decisions_is_a_path() -> None:
    with pytest.raises(OptionError, match="decisions requires the path of a JSON file or None, got 3"):
        toprovar_compiler.compile(make(ClassVAR), policy="skipvar", decisions=3)


@pytest.mark.parametrize("sides", [None, (1, 2, 4, 8)])
def test_fitting_needs_five_stated_scales(sides: tuple[int, ...] | None, tmp_path: Path) -> None:
    model = make(ClassVAR, patch_nums=sides or SIDES)
    if sides is None:
        model.patch_nums = "unknown"
    with pytest.raises(UnsupportedModelError, match="requires a model that states at least 5 scales"):
        Fitting(model, None, tmp_path)


def test_fitting_needs_one_weight_per_scale(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="one number per scale, got 2 for 5 scales"):
        Fitting(make(ClassVAR), (1.0, 2.0), tmp_path)


def _generate(model: Any, prompts: list[str], seed: int) -> Tensor:
    """Prompts for classes, and pictures for features."""
    features = model.autoregressive_infer_cfg(torch.tensor([len(prompt) % 10 for prompt in prompts]))
    return torch.nn.functional.interpolate(features[:, :3].sigmoid(), scale_factor=4)


LENT: list[Any] = []


def load(device: torch.device, dtype: torch.dtype) -> Any:
    """Names the shared toy to the command, by module and function."""
    return LENT[0]


def test_the_command_writes_a_file_that_the_policy_reads(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "generate", types.MethodType(_generate, model), raising=False)
    monkeypatch.setattr(model, "sigma", torch.tensor([1.0, 0.5, 0.5, 0.25, 0.25]), raising=False)
    monkeypatch.setattr(sys.modules[__name__], "LENT", [model])
    prompts, out = tmp_path / "prompts.txt", tmp_path / "d.json"
    prompts.write_text("a cat\na red mug\na dog on the left\na cup\n")
    given = ["--model", f"{__name__}:load", "--suite", "none", "--prompts", str(prompts), "--batch", "3"]
    assert main([*given, "--device", "cpu", "--scale-weights", "sigma", "--out", str(out)]) == 0
    assert "of 4 pictures, 0 to 3 scales may go in" in capsys.readouterr().out
    found = load_decisions(out)
    assert (found.samples, found.decision_scale, found.model) == (4, 1, "ClassVAR")
    assert found.scale_weights == (1.0, 0.5, 0.5, 0.25, 0.25)
    assert decisions_for(model, SCHEDULE, str(out)) == found

    assert main([*given, "--device", "cpu", "--threshold", ".84", ".9", "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("of 4 pictures") == 2
    assert [load_decisions(tmp_path / f"d-{at}.json").threshold for at in (0.84, 0.9)] == [0.84, 0.9]


def test_the_command_prints_deliberate_errors_as_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "nowhere:load", "--prompts", "3", "--out", str(tmp_path / "d.json")]
    assert main(given) == 2
    assert capsys.readouterr().err.count("\n") == 1
