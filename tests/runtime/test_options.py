"""Options: every bad input is refused with the value, the expectation and a remedy."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch

import toprovar_compiler
from tests.toy_generators import ClassVAR, TextVAR, make
from toprovar_compiler.errors import OptionError, ToprovarError, UnsupportedModelError
from toprovar_compiler.options import Options, parse_options

BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"policy": "sparse"}, "'toprovar', 'dense'.*got 'sparse'"),
    ({"policy": None}, "policy requires one of"),
    ({"start_scale": -1}, "start_scale requires a whole number of at least 0.*got -1"),
    ({"start_scale": 2.0}, r"start_scale requires a whole number.*got 2\.0"),
    ({"start_scale": True}, "start_scale requires a whole number.*got True"),
    ({"keep_ratio": 0}, r"keep_ratio requires a number in \(0, 1\], got 0"),
    ({"keep_ratio": -0.1}, r"keep_ratio requires a number in \(0, 1\], got -0\.1"),
    ({"keep_ratio": 1.01}, r"keep_ratio requires a number in \(0, 1\], got 1\.01"),
    ({"keep_ratio": math.nan}, "keep_ratio requires finite numbers, got nan"),
    ({"keep_ratio": math.inf}, "keep_ratio requires finite numbers, got inf"),
    ({"keep_ratio": "0.5"}, "keep_ratio requires a number or a sequence.*got '0.5'"),
    ({"keep_ratio": True}, "keep_ratio requires finite numbers, got True"),
    ({"keep_ratio": []}, r"keep_ratio requires a number or a sequence.*got \[\]"),
    ({"keep_ratio": [0.5, 0.0]}, r"keep_ratio\[1\] requires a number in \(0, 1\], got 0"),
    ({"keep_ratio": [0.5, math.nan]}, "keep_ratio requires finite numbers, got nan"),
    ({"strict": 1}, "strict requires True or False, got 1"),
    ({"calibration": 3}, "calibration requires the path of a JSON file or None, got 3"),
    ({"target_speedup": 0.5}, r"target_speedup requires one number of at least 1 or None, got 0\.5"),
    ({"target_speedup": [2.0]}, r"target_speedup requires one number of at least 1 or None, got \[2\.0\]"),
    ({"target_speedup": math.nan}, "target_speedup requires finite numbers, got nan"),
    ({"target_speedup": 2, "keep_ratio": 0.5}, r"target_speedup=2 requires keep_ratio=None, got 0\.5"),
    ({"target_speedup": 2, "policy": "fastvar"}, "requires a policy that has plans, got 'fastvar'"),
    ({"entropy_source": "previous"}, "entropy_source requires one of.*got 'previous'"),
    ({"restoration": "zero"}, "restoration requires one of.*got 'zero'"),
    ({"pruned_keys": "kept"}, "pruned_keys requires one of.*got 'kept'"),
    ({"guidance_rows": 0}, "guidance_rows requires a whole number of at least 1.*got 0"),
    ({"drop_scales": -1}, "drop_scales requires a whole number of at least 0, got -1"),
    ({"drop_scales": None}, "drop_scales requires a whole number of at least 0, got None"),
    ({"policy_seed": 1.5}, r"policy_seed requires a whole number of at least 0, got 1\.5"),
    ({"decisions": 3}, "decisions requires the path of a JSON file or None, got 3"),
    ({"policy": "fixed-exit", "start_scale": 0}, "'fixed-exit' requires a start_scale of at least 1, got 0"),
    ({"blocks": 3}, "blocks requires a dotted module name.*got 3"),
    ({"layer_budgets": 0.5, "restoration": "bypass"}, "layer_budgets requires one number per layer, got 0.5"),
    ({"layer_budgets": [1.5], "restoration": "bypass"}, r"layer_budgets\[0\] requires a number in \[0, 1\]"),
    (
        {"entropy_source": "same-layer"},
        "requires entropy_source='calibrated', 'online' or 'layer-mean', got 'same-layer'",
    ),
    ({"entropy_source": "last-full-layer"}, "requires entropy_source=.*got 'last-full-layer'"),
]


@pytest.mark.parametrize(("given", "message"), BAD_VALUES, ids=[str(given) for given, _ in BAD_VALUES])
def test_bad_value_is_refused_with_value_and_expectation(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options(given)


def test_unknown_option_is_refused_with_the_nearest_known_name() -> None:
    with pytest.raises(
        OptionError, match="unknown option 'keepratio'.*did you mean 'keep_ratio'.*start_scale"
    ):
        parse_options({"keepratio": 0.5})


def test_option_errors_are_value_errors_for_callers_who_know_nothing_of_toprovar() -> None:
    assert issubclass(OptionError, (ValueError, ToprovarError))
    with pytest.raises(ValueError, match="keep_ratio"):
        Options(keep_ratio=2)


@pytest.mark.parametrize("source", [None, "calibrated", "layer-mean"])
def test_scale_exit_takes_every_source_that_is_known_before_the_scale(source: Any) -> None:
    assert Options().entropy_source is None
    assert Options(entropy_source=source, calibration="c.json").restoration == "scale-exit"


@pytest.mark.parametrize("ratio", [1, 1.0, 0.25, Fraction(1, 4), (0.5,) * 5, [0.5] * 5])
def test_every_kind_of_real_number_is_a_keep_ratio(ratio: Any) -> None:
    model = make(ClassVAR)
    assert toprovar_compiler.compile(model, keep_ratio=ratio) is model


def test_keep_ratio_at_takes_the_entry_of_the_scale() -> None:
    options = Options(keep_ratio=[1.0, 0.5, 0.25])
    assert [options.keep_ratio_at(scale) for scale in range(3)] == [1.0, 0.5, 0.25]


def test_keep_ratio_at_refuses_a_scale_without_entry() -> None:
    with pytest.raises(OptionError, match="one number per scale, got 3 for a model that runs scale 3"):
        Options(keep_ratio=[1.0, 0.5, 0.25]).keep_ratio_at(3)


@pytest.mark.parametrize("given", [{"start_scale": 5}, {"keep_ratio": [0.5] * 4}, {"keep_ratio": [0.5] * 6}])
def test_options_outside_a_stated_schedule_are_refused_before_anything_runs(given: dict[str, Any]) -> None:
    model = make(ClassVAR)
    with pytest.raises(OptionError, match="schedule"):
        toprovar_compiler.compile(model, **given)
    with pytest.raises(UnsupportedModelError):
        toprovar_compiler.summary(model)


def test_refused_options_leave_a_compiled_model_as_it_was(class_var: Any, labels: torch.Tensor) -> None:
    model = class_var(keep_ratio=0.3)
    picture = model.autoregressive_infer_cfg(labels)
    with pytest.raises(OptionError):
        toprovar_compiler.compile(model, start_scale=99)
    assert torch.equal(model.autoregressive_infer_cfg(labels), picture)


def test_start_scale_outside_an_unstated_schedule_is_refused_once_the_scales_ran(
    prompt: torch.Tensor,
) -> None:
    model = torch.compile(make(TextVAR, sides=(1, 2)), backend="toprovar", options={"start_scale": 2})
    with pytest.raises(OptionError, match=r"got 2 for one of 2 scales \(0 to 1\)"):
        model.paint(prompt)


def test_keep_ratio_list_too_short_for_an_unstated_schedule_names_the_scale(
    text_var: Any, prompt: torch.Tensor
) -> None:
    model = text_var(keep_ratio=[1, 1, 0.5], start_scale=2)
    with pytest.raises(OptionError, match="got 3 for a model that runs scale 3"):
        model.paint(prompt)


@pytest.mark.parametrize("budgets", [[1.0] * 2, [1.0] * 4], ids=["too few", "too many"])
def test_layer_budgets_of_another_depth_are_refused(budgets: list[float]) -> None:
    with pytest.raises(OptionError, match=r"layer_budgets requires .*layer.*got \d"):
        toprovar_compiler.compile(make(ClassVAR), restoration="bypass", layer_budgets=budgets)


def test_torch_compile_validates_options_before_the_first_call() -> None:
    with pytest.raises(OptionError, match="unknown option 'keep'"):
        torch.compile(make(ClassVAR), backend="toprovar", options={"keep": 0.5})


def test_compiling_something_that_is_no_module_names_the_remedy() -> None:
    with pytest.raises(UnsupportedModelError, match="requires a torch.nn.Module, got function; for a method"):
        toprovar_compiler.compile(lambda: None)  # type: ignore[type-var]


def test_a_model_without_repeated_blocks_names_the_remedy() -> None:
    with pytest.raises(UnsupportedModelError, match="found none in Linear; name it with blocks="):
        toprovar_compiler.compile(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "ask", [toprovar_compiler.summary, toprovar_compiler.kept_tokens, toprovar_compiler.restore]
)
def test_asking_for_a_model_that_is_not_compiled_names_the_remedy(ask: Any) -> None:
    with pytest.raises(
        UnsupportedModelError, match="requires a .*compiled.*, got a ClassVAR that is not; .+"
    ):
        ask(make(ClassVAR))
