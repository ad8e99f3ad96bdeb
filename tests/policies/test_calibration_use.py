"""What a calibration gives a run: its budgets, and a clear refusal where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import toprovar_compiler
from tests.policies.calibrations import MILD, PLAN, STRONG, calibration
from tests.toy_generators import ClassVAR, make
from toprovar_compiler.errors import ArtifactError, OptionError, UnsupportedModelError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.calibration import Plan, calibration_for

SCHEDULE = (1, 4, 9, 16, 36)


def test_a_plan_starts_at_the_first_scale_that_it_prunes() -> None:
    assert [plan.start_scale for plan in (MILD, PLAN, STRONG)] == [3, 2, 2]
    assert Plan(1.0, 1.0, (1.0,) * 5).start_scale == 4, "the last one where none is pruned"


def test_a_keep_ratio_that_was_given_is_left_alone(model: Any) -> None:
    for given in (Options(keep_ratio=0.5), Options(keep_ratio=[0.5] * 5, start_scale=1)):
        assert calibration(model).complete(given) == given


def test_the_plan_is_the_budget_where_none_is_given(model: Any) -> None:
    made = calibration(model)
    assert made.complete(Options()) == Options(keep_ratio=PLAN.keep_ratio, start_scale=2)
    given = {"start_scale": 3, "restoration": "bypass", "entropy_source": "same-layer", "strict": True}
    assert made.complete(Options(**given)) == Options(**given, keep_ratio=PLAN.keep_ratio)


def test_a_plans_end_of_guidance_comes_with_its_budget_unless_another_is_given(model: Any) -> None:
    made = calibration(model, plan=Plan(3.0, 0.9, PLAN.keep_ratio, guidance_until=3))
    for given, until in (({}, 3), ({"guidance_until": "end"}, "end"), ({"guidance_until": 4}, 4)):
        assert made.complete(Options(**given)).guidance_until == until
    assert made.complete(Options(keep_ratio=0.5)).guidance_until is None


@pytest.mark.parametrize(
    ("given", "halved"), [({}, True), ({"guidance_until": "end"}, False), ({"keep_ratio": 0.3}, False)]
)
def test_guidance_ends_where_the_plan_says(
    given: dict[str, Any], halved: bool, model: Any, under: Any, tmp_path: Path, labels: torch.Tensor
) -> None:
    path = tmp_path / "c.json"
    calibration(model, plan=Plan(2.0, 0.9, (1.0, 1.0, 1.0, 1.0, 0.5), guidance_until=3)).save(path)
    compiled = under(calibration=str(path), start_scale=4, strict=True, **given)
    compiled.autoregressive_infer_cfg(labels)
    scale = toprovar_compiler.summary(compiled).to_dict()["per_scale"][3]
    assert scale["tokens_computed"] * (2 if halved else 1) == scale["tokens_total"]


@pytest.mark.parametrize(
    ("speedup", "plan"),
    [(1, MILD), (1.25, MILD), (1.26, PLAN), (2, PLAN), (2.01, STRONG), (3.5, STRONG)],
)
def test_the_mildest_plan_that_is_fast_enough_is_taken(speedup: float, plan: Any, model: Any) -> None:
    found = calibration(model).complete(Options(target_speedup=speedup))
    assert (found.keep_ratio, found.start_scale) == (plan.keep_ratio, plan.start_scale)


def test_a_speedup_beyond_all_plans_is_refused(model: Any, under: Any, calibration_file: Path) -> None:
    message = "target_speedup requires at most 3.5.*got 3.6; ask for less, or calibrate with"
    with pytest.raises(OptionError, match=message):
        calibration(model).complete(Options(target_speedup=3.6))
    with pytest.raises(OptionError, match=message):
        under(calibration=str(calibration_file), target_speedup=3.6)


def test_a_file_of_another_architecture_is_refused_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    calibration(make(ClassVAR, depth=4)).save(path)
    model = make(ClassVAR)
    with pytest.raises(ArtifactError, match=r"requires the model that it was made for \(ClassVAR, .*got C"):
        toprovar_compiler.compile(model, calibration=str(path))
    with pytest.raises(UnsupportedModelError):
        toprovar_compiler.summary(model)


@pytest.mark.parametrize("change", [{"schedule": [1, 4, 9, 16, 25]}, {"schema": 9}, {"plan": None}], ids=str)
def test_a_bad_calibration_changes_nothing_of_what_is_compiled_already(
    change: dict[str, Any], under: Any, calibration_file: Path, tmp_path: Path, labels: torch.Tensor
) -> None:
    compiled = under(calibration=str(calibration_file))
    before = compiled.autoregressive_infer_cfg(labels)
    kept = toprovar_compiler.kept_tokens(compiled)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({**json.loads(calibration_file.read_text()), **change}))
    with pytest.raises(ArtifactError, match=r"bad\.json.*; make one with"):
        toprovar_compiler.compile(compiled, calibration=str(bad))
    with pytest.raises(ArtifactError, match=r"bad\.json.*; make one with"):
        torch.compile(compiled, backend="toprovar", options={"calibration": str(bad)})(labels)
    torch.testing.assert_close(compiled.autoregressive_infer_cfg(labels), before, rtol=0, atol=0)
    again = toprovar_compiler.kept_tokens(compiled)
    assert all(torch.equal(kept[scale], again[scale]) for scale in (*kept, *again))


def test_a_file_of_other_weights_is_refused_and_one_of_another_dtype_is_not(
    tmp_path: Path, model: Any
) -> None:
    path = tmp_path / "c.json"
    made = calibration(make(ClassVAR, seed=1))
    made.save(path)
    with pytest.raises(ArtifactError, match="requires the weights that it was made for, got a ClassVAR of "):
        calibration_for(model, SCHEDULE, str(path))
    for dtype in (torch.float64, torch.bfloat16):
        assert calibration_for(make(ClassVAR, seed=1, dtype=dtype), SCHEDULE, str(path)) == made


@pytest.mark.parametrize(("name", "value"), [("entropy_source", "calibrated"), ("target_speedup", 2.0)])
def test_without_a_calibration_the_remedy_is_named(name: str, value: Any) -> None:
    model = make(ClassVAR)
    message = f"{name}={value!r} requires a calibration for ClassVAR, got none: .*toprovar calibrate"
    with pytest.raises(ArtifactError, match=message):
        toprovar_compiler.compile(model, **{name: value})
    with pytest.raises(UnsupportedModelError):
        toprovar_compiler.summary(model)
    assert toprovar_compiler.compile(model) is model, "one is not needed where none is asked for"
