"""Which generation, scale and layer a block call belongs to."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.runtime.driver import Driver, codes
from toprovar_compiler.errors import OptionError

SCHEDULE = (1, 4, 9)


def test_scales_and_layers_count_from_zero_in_the_order_in_which_they_run() -> None:
    steps = Driver(policy="dense").generate(SCHEDULE)
    assert [(step.scale, step.layer) for step in steps] == [
        (s, layer) for s in range(3) for layer in range(3)
    ]


def test_the_prefix_counts_all_tokens_of_earlier_scales_pruned_or_not() -> None:
    driver = Driver(policy="dense")
    kept = torch.tensor([[0, 2], [1, 3]])
    steps = [driver.scale(1), driver.scale(4, kept=kept), driver.scale(9)]
    assert [scale[0].prefix for scale in steps] == [0, 1, 5]


def test_an_empty_cache_starts_a_generation() -> None:
    driver = Driver(policy="dense")
    driver.generate(SCHEDULE)
    assert driver.generate(SCHEDULE)[0][:2] == (0, 0)
    assert driver.session.counters.generations == 2


def test_a_generation_of_one_scale_is_told_from_the_next() -> None:
    driver = Driver(policy="dense")
    for _ in range(3):
        driver.generate((4,))
    assert driver.session.counters.generations == 3


def test_two_scales_of_the_same_size_are_two_scales() -> None:
    steps = Driver(policy="dense").generate((1, 4, 4))
    assert [step.scale for step in steps[::3]] == [0, 1, 2]


@pytest.mark.parametrize("done", [(), (0,), (0, 1), (0, 1, 2)], ids=str)
def test_after_a_generation_that_broke_off_in_scale_one_counting_starts_anew(done: tuple[int, ...]) -> None:
    driver = Driver(policy="dense", schedule=SCHEDULE)
    driver.scale(1)
    for layer in done:
        driver.block(layer, 4)
    steps = driver.generate(SCHEDULE)
    assert [step.scale for step in steps[::3]] == [0, 1, 2]


@pytest.mark.parametrize("done", [(0,), (0, 1)], ids=str)
def test_after_a_generation_that_broke_off_in_scale_zero_counting_starts_anew(done: tuple[int, ...]) -> None:
    driver = Driver(policy="dense")
    for layer in done:
        driver.block(layer, 1)
    steps = driver.generate(SCHEDULE)
    assert [step.scale for step in steps[::3]] == [0, 1, 2]


def test_a_broken_off_generation_of_a_stated_schedule_proves_nothing() -> None:
    driver = Driver(schedule=SCHEDULE, start_scale=2, strict=True)
    driver.scale(1)
    driver.generate(SCHEDULE[:1])
    assert driver.session.counters.generations == 2


def test_a_broken_off_generation_of_an_unstated_schedule_does_not_stop_the_next() -> None:
    driver = Driver(start_scale=2)
    driver.scale(1)
    driver.scale(4)
    assert driver.generate(SCHEDULE)[0].scale == 0


def test_two_sessions_interleaved_count_apart() -> None:
    one, two = Driver(policy="dense"), Driver(policy="dense", layers=2)
    for tokens in SCHEDULE:
        first, second = one.scale(tokens), two.scale(tokens, rows=4)
        assert first[0].scale == second[0].scale
    assert one.session.counters.total().tokens_total == 2 * 3 * sum(SCHEDULE)
    assert two.session.counters.total().tokens_total == 4 * 2 * sum(SCHEDULE)


def test_layers_that_run_in_another_order_keep_their_number_within_a_generation() -> None:
    driver = Driver(policy="dense")
    driver.scale(1)
    assert [driver.block(layer, 4).layer for layer in (2, 0, 1)] == [2, 0, 1]


def test_new_weights_are_no_new_layers_of_the_next_generation() -> None:
    driver = Driver(policy="dense")
    driver.generate(SCHEDULE)
    driver.empty_cache()
    keys = (7, 8, 9)
    assert [driver.session.enter(key, 1, 1, 2).layer for key in keys[:1]] == [0]


def test_rows_of_a_sample_are_learnt_from_the_codes_of_the_first_scale() -> None:
    driver = Driver(policy="dense")
    driver.scale(1, rows=6)
    driver.session.see_codes(codes(3, 1))
    assert [(step.samples, step.rows_per_sample) for step in driver.scale(4, rows=6)] == [(3, 2)] * 3


def test_rows_of_a_sample_are_learnt_anew_in_every_generation() -> None:
    driver = Driver(policy="dense")
    driver.scale(1, rows=4)
    driver.session.see_codes(codes(2, 1))
    driver.empty_cache()
    driver.scale(1, rows=2)
    driver.session.see_codes(codes(2, 1))
    assert driver.scale(4, rows=2)[0].samples == 2


def test_guidance_rows_win_over_what_the_codes_say() -> None:
    driver = Driver(policy="dense", guidance_rows=2)
    driver.scale(1, rows=4)
    driver.session.see_codes(codes(4, 1))
    assert driver.scale(4, rows=4)[0].samples == 2


def test_guidance_rows_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(
        OptionError, match="guidance_rows requires a divisor of the batch rows, got 2 for 3 rows"
    ):
        Driver(policy="dense", guidance_rows=2).scale(1, rows=3)


def test_kept_tokens_are_the_share_of_layers_that_computed_a_token() -> None:
    driver = Driver(policy="dense", layers=2)
    driver.scale(1)
    driver.block(0, 4, kept=torch.tensor([[0, 1], [2, 3]]))
    driver.block(1, 4, kept=torch.tensor([[1, 2], [2, 3]]))
    assert driver.session.kept_tokens()[1].tolist() == [[0.5, 1.0, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0]]


def test_a_layer_that_ran_in_full_counts_for_all_tokens_of_a_pruned_scale() -> None:
    driver = Driver(policy="dense", layers=2)
    driver.block(0, 4)
    driver.block(1, 4, kept=torch.tensor([[0, 1], [2, 3]]))
    assert driver.session.kept_tokens()[0].tolist() == [[1.0, 1.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]


def test_kept_tokens_are_those_of_the_last_generation_only() -> None:
    driver = Driver(policy="dense")
    driver.scale(4, kept=torch.tensor([[0, 1], [2, 3]]))
    driver.generate(SCHEDULE)
    assert driver.session.kept_tokens() == {}


def test_graphs_compiled_after_a_whole_generation_are_recompiles() -> None:
    driver = Driver(policy="dense")
    driver.session.graph_compiled()
    driver.generate(SCHEDULE)
    driver.session.graph_compiled()
    driver.session.finish()
    driver.session.graph_compiled()
    assert (driver.session.counters.graphs, driver.session.counters.recompiles) == (3, 1)


def test_only_the_first_of_several_generations_to_learn_from_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(policy="dense")
    monkeypatch.setattr(type(driver.session.policy), "learning", True, raising=False)
    seen = []
    for _ in range(3):
        driver.generate(SCHEDULE)
        seen.append((driver.session.runs_uncompiled, driver.session.counters.recompiles))
        driver.session.graph_compiled()
    assert seen == [(True, 0), (False, 0), (False, 0)]
    assert driver.session.counters.recompiles == 1, "what is compiled after the second one"


def test_the_first_reason_is_a_warning_and_every_one_is_counted() -> None:
    session = Driver().session
    with pytest.warns(UserWarning, match="toprovar: too odd"):
        session.note("too odd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.note("too odd")
        session.note("too even")
    assert session.counters.fallbacks == {"too odd": 2, "too even": 1}


def test_scales_of_a_model_without_a_cache_are_told_by_their_growth() -> None:
    driver = Driver(policy="dense", schedule=SCHEDULE)
    steps = []
    for tokens in SCHEDULE * 2:
        driver.empty_cache()
        steps.append(driver.scale(tokens)[-1].scale)
    assert steps == [0, 1, 2] * 2
    assert driver.session.counters.generations == 2


def test_a_first_scale_of_prompt_words_may_be_larger_than_the_second() -> None:
    driver = Driver(policy="dense")
    for _ in range(2):
        steps = driver.generate((20, 4, 9))
        assert [step.scale for step in steps[::3]] == [0, 1, 2]
    assert driver.session.counters.generations == 2


@pytest.mark.parametrize("samples", [1, 2])
def test_guidance_may_end_before_the_last_scale(samples: int) -> None:
    driver = Driver(policy="dense")
    for _ in range(2):
        driver.empty_cache()
        for tokens, rows in ((1, 2 * samples), (4, 2 * samples), (9, samples)):
            step = driver.scale(tokens, rows=rows)[-1]
            assert step.samples == (samples if tokens > 1 else rows)
            driver.session.see_codes(codes(samples, tokens))
        assert step.rows_per_sample == 1


@pytest.mark.parametrize(("rows", "refused"), [(1, False), (2, True)])
def test_guidance_that_the_model_ends_itself_is_no_reason(rows: int, refused: bool) -> None:
    driver = Driver(schedule=(1, 4, 9), guidance_until=2, keep_ratio=1.0)
    driver.scale(1)
    driver.session.see_codes(codes(1, 1))
    driver.scale(4)
    driver.session.see_codes(codes(1, 4))
    with warnings.catch_warnings(record=True):
        driver.scale(9, rows)  # nothing halves these calls
    reasons = [reason for reason in driver.session.counters.fallbacks if "guidance did not end" in reason]
    assert bool(reasons) == refused
