"""Guidance that ends: late scales run the conditional rows alone, pruned or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.policies.conftest import Save
from tests.toy_generators import ClassVAR, make
from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.skipvar_fit import constant

FROM, TOKENS = 3, 16  # the scale of 4 x 4 tokens
ENDS = {"guidance_until": FROM}
Under = Callable[..., Any]


def _fallbacks(model: Any) -> dict[str, int]:
    found: dict[str, int] = toprovar_compiler.summary(model).to_dict()["fallbacks"]
    return found


@pytest.fixture
def guides_early_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the model's own code end guidance: what no row of the unconditional half can change."""
    guided = ClassVAR._codes

    def codes(logits: Tensor, samples: int, cfg: float) -> Tensor:
        return logits[:samples].argmax(-1) if logits.shape[1] >= TOKENS else guided(logits, samples, cfg)

    return lambda: monkeypatch.setattr(ClassVAR, "_codes", staticmethod(codes))


@pytest.mark.filterwarnings("ignore:toprovar pruned nothing")
@pytest.mark.parametrize(
    "options",
    [
        {"keep_ratio": 1.0},
        {"keep_ratio": 0.3},
        {"keep_ratio": 0.3, "pruned_keys": "computed"},
        {"keep_ratio": 0.4, "restoration": "bypass", "entropy_source": "same-layer"},
        {"keep_ratio": 0.4, "restoration": "cached-update"},
        {"keep_ratio": 0.3, "layer_budgets": [0, 1, 1]},
        {"keep_ratio": 0.3, "policy": "inverted"},
    ],
)
def test_it_is_what_the_model_paints_if_its_own_code_ends_guidance(
    under: Under, labels: Tensor, guides_early_only: Callable[[], None], options: dict[str, Any]
) -> None:
    guided = under(**options).autoregressive_infer_cfg(labels)
    model = under(**options, guidance_until=FROM, strict=True)
    ended = [model.autoregressive_infer_cfg(labels) for _ in range(2)]
    data = toprovar_compiler.summary(model).to_dict()
    assert torch.equal(ended[0], ended[1])
    assert not torch.allclose(ended[0], guided), "guidance changes this picture"
    guides_early_only()
    model = under(**options)
    torch.testing.assert_close(ended[0], model.autoregressive_infer_cfg(labels))
    all_rows = toprovar_compiler.summary(model).to_dict()
    assert data["fallbacks"] == {}
    for ours, whole in zip(data["per_scale"], all_rows["per_scale"], strict=True):
        halved = 2 if ours["scale"] >= FROM else 1
        assert ours["tokens_total"] == 2 * whole["tokens_total"]  # of two generations
        assert ours["tokens_computed"] * halved == 2 * whole["tokens_computed"]
        assert ours["flops_total"] == 2 * whole["flops_total"]
        assert ours["flops_computed"] * halved == 2 * whole["flops_computed"]


@pytest.mark.filterwarnings("ignore:toprovar pruned nothing")
def test_without_pruning_it_is_skipvars_replacement(
    under: Under, model: Any, labels: Tensor, save: Save
) -> None:
    path = save(model, replace=constant(2))
    ended = under(keep_ratio=1, guidance_until=FROM).autoregressive_infer_cfg(labels)
    assert torch.equal(ended, under(policy="skipvar", decisions=path).autoregressive_infer_cfg(labels))


def test_without_guidance_there_are_no_rows_to_leave_out(under: Under, labels: Tensor) -> None:
    model = under(keep_ratio=0.3)
    plain = model.autoregressive_infer_cfg(labels, cfg=0.0)
    before = toprovar_compiler.summary(model).to_dict()
    model = under(keep_ratio=0.3, guidance_until=FROM, strict=True)
    assert torch.equal(model.autoregressive_infer_cfg(labels, cfg=0.0), plain)
    after = toprovar_compiler.summary(model).to_dict()
    assert after["fallbacks"] == {}
    assert after["per_scale"] == before["per_scale"]


def test_the_models_loop_need_not_be_asked(under: Under, model: Any, labels: Tensor) -> None:
    wanted = under(keep_ratio=0.3, guidance_until=FROM).autoregressive_infer_cfg(labels)
    schedule = model.patch_nums
    ended = under(keep_ratio=0.3, guidance_until=FROM, strict=True)
    model.patch_nums = list(schedule)
    found = ended.autoregressive_infer_cfg(labels)
    model.patch_nums = schedule
    assert torch.equal(found, wanted)


class UnstatedVAR(ClassVAR):
    """Is called with what it would state."""

    def paint(self, labels: Tensor, sides: Sequence[int]) -> Tensor:
        self.patch_nums, places = sides, self.pos.data
        self.pos.data = places[:, : sum(side * side for side in sides)]
        try:
            return self.autoregressive_infer_cfg(labels)
        finally:
            self.pos.data = places
            del self.patch_nums


@pytest.fixture
def unstated() -> Any:
    model: Any = make(UnstatedVAR, dtype=torch.float64)
    model.sides = model.__dict__.pop("patch_nums")
    return model


@pytest.mark.filterwarnings("ignore:toprovar")
def test_a_model_that_states_no_schedule_shows_it_in_its_first_generation(
    unstated: Any, under: Under, labels: Tensor
) -> None:
    options = {"keep_ratio": 0.3, "start_scale": FROM}
    guided, wanted = (under(**options, **more).autoregressive_infer_cfg(labels) for more in ({}, ENDS))
    ended = toprovar_compiler.compile(unstated, **options, **ENDS, strict=True)
    first, second, third = (ended.paint(labels, unstated.sides) for _ in range(3))
    assert torch.equal(first, guided)
    assert torch.equal(second, wanted)
    assert torch.equal(third, wanted)
    ((reason, times),) = _fallbacks(ended).items()
    assert "known from the generation before, where the model states no schedule" in reason
    assert times == 1


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize(
    ("other", "times"),
    [
        ((1, 2, 3, 5), 1),  # at the first scale that would be halved
        ((1, 2, 3, 4, 5), 0),  # behind it: caches are halves by then
        ((1, 2, 3, 4), 0),
        ((1, 2, 3), 0),
    ],
)
def test_another_schedule_than_in_the_generation_before(
    unstated: Any, under: Under, labels: Tensor, other: tuple[int, ...], times: int
) -> None:
    options = {"keep_ratio": 0.3, "start_scale": 2, **ENDS}
    ended = toprovar_compiler.compile(unstated, **options, strict=True)
    counted = []
    for sides in (unstated.sides, other, other, unstated.sides):
        toprovar_compiler.reset()
        ended.paint(labels, sides)
        counted.append(_fallbacks(ended))
    assert all("known from the generation before" in reason for each in counted for reason in each)
    assert (sum(counted[1].values()), counted[2]) == (times, {})
    again = ended.paint(labels, unstated.sides)
    wanted = under(**options).autoregressive_infer_cfg(labels)
    assert torch.equal(again, wanted)


@pytest.mark.filterwarnings("ignore:toprovar")
def test_a_generation_that_broke_off_shows_what_it_had(unstated: Any, under: Under, labels: Tensor) -> None:
    options = {"keep_ratio": 0.3, "start_scale": FROM, **ENDS}
    ended = toprovar_compiler.compile(unstated, **options, strict=True)
    ended.paint(labels, unstated.sides)
    broken = unstated.blocks[1].register_forward_hook(_break_off)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ended.paint(labels, unstated.sides)
    broken.remove()
    pictures = [ended.paint(labels, unstated.sides) for _ in range(2)]
    wanted = under(**options).autoregressive_infer_cfg(labels)
    assert torch.equal(pictures[1], wanted)


def _break_off(block: Any, arguments: Any, output: Tensor) -> None:
    if output.shape[1] == 9:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance_until": 0}, "guidance_until requires a whole number of at least 1"),
        ({"guidance_until": 2.5}, "guidance_until requires a whole number of at least 1"),
        ({"guidance_until": True}, "guidance_until requires a whole number of at least 1"),
        (
            {"guidance_until": 3, "policy": "fastvar"},
            "requires 'toprovar' or one of its controls, got 'fastvar'",
        ),
        ({"guidance_until": 3, "policy": "dense"}, r"got 'dense'; .*\(keep_ratio=1 prunes nothing\)"),
        ({"guidance_until": 3, "guidance_rows": 3}, "requires guidance_rows=2 or None, got 3"),
    ],
)
def test_bad_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**given)


def test_a_scale_that_the_model_does_not_have(under: Under) -> None:
    with pytest.raises(OptionError, match=r"a scale of the model's schedule \(1 to 4\), got 5"):
        under(guidance_until=5)
