"""A model's own loop ends where the policy says, and only that loop; nothing of it stays behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toprovar_compiler
from tests.policies.eager import stopped
from tests.toy_generators import TextVAR, make
from toprovar_compiler.errors import OptionError, UnsupportedGraphError
from toprovar_compiler.generation import Generation
from toprovar_compiler.scale_exit import let_exit

SIDES = (1, 2, 3, 4, 6)
PER_TOKEN = 2 * 3  # rows of a sample x layers


def _through_module(model: Any, labels: Tensor, **options: Any) -> Tensor:
    return torch.compile(model, backend="toprovar", options=options).autoregressive_infer_cfg(labels)


def _through_method(model: Any, labels: Tensor, **options: Any) -> Tensor:
    return torch.compile(model.autoregressive_infer_cfg, backend="toprovar", options=options)(labels)


def _in_place(model: Any, labels: Tensor, **options: Any) -> Tensor:
    toprovar_compiler.compile(model, **options)
    try:
        return model.autoregressive_infer_cfg(labels)
    finally:
        toprovar_compiler.restore(model)


WAYS = [_through_module, _through_method, _in_place]


@pytest.mark.parametrize("start", [1, 3, 4])
@pytest.mark.parametrize("way", WAYS)
def test_the_picture_is_that_of_the_scales_before(way: Any, start: int, model: Any, labels: Tensor) -> None:
    picture = way(model, labels, policy="fixed-exit", start_scale=start)
    torch.testing.assert_close(picture, stopped(model, labels, start))


@pytest.mark.parametrize("way", WAYS)
def test_afterwards_the_schedule_is_the_models_own(way: Any, model: Any, labels: Tensor) -> None:
    before, eager = model.patch_nums, model.autoregressive_infer_cfg(labels)
    way(model, labels, policy="fixed-exit", start_scale=3)
    assert model.patch_nums is before
    assert torch.equal(model.autoregressive_infer_cfg(labels), eager)


def test_with_a_threshold_the_exit_waits_for_the_low_entropy_ratio(
    under: Any, model: Any, labels: Tensor
) -> None:
    """Any ratio reaches 0, and none 1: that is a counted reason for every scale that ran."""
    early = under(policy="fixed-exit", start_scale=3, scale_threshold=0.0).autoregressive_infer_cfg(labels)
    assert toprovar_compiler.summary(model).to_dict()["fallbacks"] == {}
    late = under(policy="fixed-exit", start_scale=3, scale_threshold=1.0)
    with pytest.warns(UserWarning, match="scale_threshold=1.0"):
        whole = late.autoregressive_infer_cfg(labels)
    assert list(toprovar_compiler.summary(model).to_dict()["fallbacks"].values()) == [2]
    toprovar_compiler.restore(model)
    torch.testing.assert_close(early, stopped(model, labels, 3))
    torch.testing.assert_close(whole, model.autoregressive_infer_cfg(labels))


def test_scales_that_are_not_run_are_due_and_not_computed(under: Any, model: Any, labels: Tensor) -> None:
    dense = under(policy="dense")
    dense.autoregressive_infer_cfg(labels)
    full = toprovar_compiler.summary(model).to_dict()
    under(policy="fixed-exit", start_scale=3).autoregressive_infer_cfg(labels)
    data = toprovar_compiler.summary(model).to_dict()
    assert data["tokens_total"] == full["tokens_total"]
    assert data["tokens_computed"] == len(labels) * PER_TOKEN * (1 + 4 + 9)
    assert data["flops_total"] == full["flops_total"]
    assert data["flops_computed"] == sum(row["flops_computed"] for row in full["per_scale"][:3])
    assert data["per_scale"][3] == full["per_scale"][3] | {"tokens_computed": 0, "flops_computed": 0}
    assert data["fallbacks"] == {}
    assert data["generations"] == 1


def test_tokens_of_scales_that_are_not_run_are_computed_by_no_layer(under: Any, labels: Tensor) -> None:
    model = under(policy="fixed-exit", start_scale=3)
    model.autoregressive_infer_cfg(labels)
    kept = toprovar_compiler.kept_tokens(model)
    assert {scale: (tuple(share.shape), float(share.sum())) for scale, share in kept.items()} == {
        3: ((3, 16), 0.0),
        4: ((3, 36), 0.0),
    }


def test_generations_are_counted_one_by_one(under: Any, labels: Tensor) -> None:
    model = under(policy="fixed-exit", start_scale=2)
    pictures = [model.autoregressive_infer_cfg(labels) for _ in range(3)]
    assert all(torch.equal(pictures[0], picture) for picture in pictures)
    data = toprovar_compiler.summary(model).to_dict()
    assert data["generations"] == 3
    assert data["tokens_total"] == 3 * len(labels) * PER_TOKEN * sum(n * n for n in SIDES)
    assert data["recompiles"] == 0


def test_flops_that_no_graph_can_tell_are_a_counted_reason(under: Any, labels: Tensor) -> None:
    model = under(policy="fixed-exit", start_scale=1)
    with pytest.warns(UserWarning, match="FLOPs of scales that were not run are unknown"):
        model.autoregressive_infer_cfg(labels)


def test_the_last_three_scales_are_left_out_by_default(under: Any, model: Any, labels: Tensor) -> None:
    picture = under(policy="fixed-exit").autoregressive_infer_cfg(labels)
    toprovar_compiler.restore(model)
    torch.testing.assert_close(picture, stopped(model, labels, 2))


def test_a_copy_of_a_compiled_model_paints_in_full(under: Any, model: Any, labels: Tensor) -> None:
    eager = model.autoregressive_infer_cfg(labels)
    twin = copy.deepcopy(under(policy="fixed-exit", start_scale=3))
    assert type(twin.patch_nums) is tuple
    assert torch.equal(twin.autoregressive_infer_cfg(labels), eager)


def test_the_schedule_is_equal_while_it_is_replaced(under: Any, model: Any) -> None:
    under(policy="fixed-exit", start_scale=3)
    sides = model.patch_nums
    assert (sides, hash(sides), len(sides), sides[-1], sides[1:3]) == (SIDES, hash(SIDES), 5, 6, (2, 3))
    assert (list(sides), tuple(sides), sum(sides)) == (list(SIDES), SIDES, sum(SIDES))
    assert type(copy.copy(sides)) is type(copy.deepcopy(sides)) is tuple


@pytest.mark.parametrize("options", [{}, {"policy": "dense"}, {"policy": "fastvar"}, {"policy": "random"}])
def test_a_policy_that_runs_all_scales_leaves_the_schedule_alone(
    options: Any, under: Any, model: Any
) -> None:
    before = model.patch_nums
    assert under(**options).patch_nums is before


def test_other_iterations_see_all_scales(model: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the schedule is a list, and summed up amid the loop."""
    listed, sums = list(SIDES), []
    monkeypatch.setattr(model, "patch_nums", listed)
    hook = model.head.register_forward_hook(lambda *_: sums.append(sum(n * n for n in model.patch_nums)))
    _in_place(model, labels, policy="fixed-exit", start_scale=3)
    hook.remove()
    assert sums == [66] * 3
    assert model.patch_nums is listed


@pytest.mark.filterwarnings("ignore:toprovar")
def test_a_loop_over_another_sequence_is_a_counted_reason(under: Any, model: Any, labels: Tensor) -> None:
    compiled = under(policy="fixed-exit", start_scale=3)
    model.patch_nums = SIDES
    compiled.autoregressive_infer_cfg(labels)
    data = toprovar_compiler.summary(compiled).to_dict()
    assert data["tokens_computed"] == data["tokens_total"]
    ((reason, times),) = data["fallbacks"].items()
    assert "the model does not loop over the schedule that it states" in reason
    assert times == 2, "at both scales"
    strict = under(policy="fixed-exit", start_scale=3, strict=True)
    model.patch_nums = SIDES
    with pytest.raises(UnsupportedGraphError, match="does not loop over the schedule"):
        strict.autoregressive_infer_cfg(labels)


@pytest.mark.filterwarnings("ignore:toprovar")
def test_a_model_that_states_no_schedule_is_a_counted_reason(labels: Tensor) -> None:
    model, options = make(TextVAR, sides=(1, 2)), {"policy": "fixed-exit", "start_scale": 1}
    compiled = torch.compile(model, backend="toprovar", options=options)
    compiled.paint(labels[None])
    data = toprovar_compiler.summary(compiled).to_dict()
    assert data["tokens_computed"] == data["tokens_total"]
    ((reason, times),) = data["fallbacks"].items()
    assert "requires a model that states its schedule as patch_nums or scale_schedule" in reason
    assert times == 1
    strict = torch.compile(model, backend="toprovar", options=options | {"strict": True})
    with pytest.raises(UnsupportedGraphError, match="requires a model that states its schedule"):
        strict.paint(labels[None])


def test_a_computed_schedule_cannot_be_replaced() -> None:
    class Computed(nn.Module):
        @property
        def patch_nums(self) -> tuple[int, ...]:
            return SIDES

    assert let_exit(Computed(), None) is None  # type: ignore[arg-type]


def test_a_schedule_of_the_class_is_there_again_afterwards() -> None:
    class Stated(nn.Module):
        patch_nums = SIDES

    model = Stated()
    undo = let_exit(model, None)  # type: ignore[arg-type]
    assert undo is not None
    assert "patch_nums" in vars(model)
    undo()
    assert "patch_nums" not in vars(model)


def test_a_new_schedule_is_not_undone() -> None:
    model = nn.Module()
    model.patch_nums = SIDES
    undo = let_exit(model, None)  # type: ignore[arg-type]
    assert undo is not None
    model.patch_nums = (1, 2)
    undo()
    assert model.patch_nums == (1, 2)


class Scripted:
    """A session whose position is set by hand, and that ends before every scale from the second on."""

    def __init__(self) -> None:
        self.session, self.at = self, None
        self.asked: list[int] = []

    def position(self) -> tuple[Generation, int] | None:
        return self.at

    def exits_before(self, scale: int) -> bool:
        self.asked.append(scale)
        return scale > 1


def test_only_an_iteration_whose_body_runs_the_scales_is_asked_to_end() -> None:
    model, script, generation = nn.Module(), Scripted(), Generation(None)
    model.patch_nums = SIDES
    let_exit(model, script)  # type: ignore[arg-type]
    script.at = (generation, 2)
    assert [side for side in model.patch_nums] == list(SIDES)  # noqa: C416
    assert script.asked == []
    seen = []
    for scale, side in enumerate(model.patch_nums):
        script.at = (Generation(None) if scale == 0 else script.at[0], scale)
        seen.append(side)
    assert (seen, script.asked) == ([1, 2], [1, 2])


def test_fixed_exit_needs_a_scale_to_run(model: Any) -> None:
    with pytest.raises(OptionError, match="'fixed-exit' requires a start_scale of at least 1, got 0"):
        toprovar_compiler.compile(model, policy="fixed-exit", start_scale=0)
