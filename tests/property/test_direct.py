"""Random programs, rewritten and run without a compiler, against the untouched program on gathered tokens."""

from __future__ import annotations

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.property.checks import (
    check_dense,
    check_entropy,
    check_keep_all,
    check_pruned,
    prepare,
    prepare_or_refuse,
)
from tests.property.strategies import MIXING, Case, good_cases, hard_cases

GOOD_EXAMPLES = 320
HARD_EXAMPLES = 180

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
_seeds = st.integers(0, 2**16)
_keys = st.sampled_from(["absent", "computed"])


@settings(max_examples=GOOD_EXAMPLES, deadline=None, suppress_health_check=_SLOW)
@given(case=good_cases(), seed=_seeds, keys=_keys, data=st.data())
def test_supported_programs_are_rewritten_and_right(
    case: Case, seed: int, keys: str, data: st.DataObject
) -> None:
    prepared = prepare(case, seed)
    before = prepared.captured.code
    check_dense(prepared)
    check_entropy(prepared)
    check_keep_all(prepared, keys)
    check_pruned(prepared, keys, data.draw(st.integers(1, case.shape.tokens), label="keep"), seed)
    assert prepared.captured.code == before


@settings(max_examples=HARD_EXAMPLES, deadline=None, suppress_health_check=_SLOW)
@given(case=hard_cases(), seed=_seeds, keys=_keys, data=st.data())
def test_near_misses_are_refused_or_right(case: Case, seed: int, keys: str, data: st.DataObject) -> None:
    prepared = prepare_or_refuse(case, seed)
    if isinstance(prepared, str):
        assert len(prepared) > 10, "a refusal has a reason"
        event("refused")
        return
    assert case.hard != MIXING, "tokens were mixed, and the graph was typed all the same"
    event("rewritten")
    check_dense(prepared)
    check_keep_all(prepared, keys)
    check_pruned(prepared, keys, data.draw(st.integers(1, case.shape.tokens), label="keep"), seed)
