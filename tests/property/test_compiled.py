"""Random programs compiled by Inductor: with the gate off bit for bit what plain Inductor gives, and pruned
variants against the untouched program on gathered tokens, at the sizes they were compiled for and at others.
"""

from __future__ import annotations

import torch
import torch._inductor.config
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.property import reference
from tests.property.checks import assert_equal, draw_index
from tests.property.compiled import Added, Call, Pruned, Route
from tests.property.strategies import MIXING, Case, good_cases, hard_cases, other_shapes, rows_per_sample

GOOD_EXAMPLES = 48
HARD_EXAMPLES = 12
LATER_CALLS = 3

# Vector code takes the C++ compiler twice the time, and the graph, its sizes and its guards are the same.
_SCALAR = {"cpp.simdlen": 1}

# Shrinking would compile for an hour: a failing example is printed as it was drawn.
_compiled = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_seeds = st.integers(0, 2**16)
_keys = st.sampled_from(["absent", "computed"])
_seldom = st.sampled_from([False] * 4 + [True])


@settings(_compiled, max_examples=GOOD_EXAMPLES)
@given(case=good_cases(), seed=_seeds, keys=_keys, dense=_seldom, vectorised=_seldom, data=st.data())
def test_supported_programs_are_right_when_compiled(
    case: Case, seed: int, keys: str, dense: bool, vectorised: bool, data: st.DataObject
) -> None:
    calls = _draw_calls(case, seed, data)
    with torch._inductor.config.patch({} if vectorised else _SCALAR):
        route = Route(case, calls[0].inputs, with_dense=dense)
        assert route.typed is not None, route.reason
        pruned = Pruned(route.typed, keys, data.draw(rows_per_sample(case)))
        _check_pruned_calls(route, pruned, calls, seed, data)
        if dense:
            _check_dense_calls(route, calls, seed)
    event(f"gate for rows: {pruned.rows_per_sample}")
    event(f"variants refused: {pruned.refused}")


@settings(_compiled, max_examples=HARD_EXAMPLES)
@given(case=hard_cases(), seed=_seeds, keys=_keys, data=st.data())
def test_near_misses_run_as_in_plain_inductor(case: Case, seed: int, keys: str, data: st.DataObject) -> None:
    calls = _draw_calls(case, seed, data)
    with torch._inductor.config.patch(_SCALAR):
        route = Route(case, calls[0].inputs, with_dense=True)
        _check_dense_calls(route, calls, seed)
        event("refused" if route.typed is None else "rewritten")
        if route.typed is not None:
            assert case.hard != MIXING, "tokens were mixed, and the graph was typed all the same"
            pruned = Pruned(route.typed, keys, data.draw(rows_per_sample(case)))
            _check_pruned_calls(route, pruned, calls, seed, data)


def _draw_calls(case: Case, seed: int, data: st.DataObject) -> list[Call]:
    """The call that compiles, and later ones of other sizes."""
    rooms = data.draw(st.sampled_from([(0,), (0,), (1, 3, 8)]), label="rooms")
    shapes = [case.shape, *(data.draw(other_shapes(case), label="sizes") for _ in range(LATER_CALLS))]
    return [Call.of(case, shape, seed, data.draw(st.sampled_from(rooms))) for shape in shapes]


def _check_dense_calls(route: Route, calls: list[Call], seed: int) -> None:
    for call in calls:
        _check_dense(route, call, seed)


def _check_pruned_calls(
    route: Route, pruned: Pruned, calls: list[Call], seed: int, data: st.DataObject
) -> None:
    """The first call compiles; what runs in later ones must be right at the sizes that it accepts."""
    for number, call in enumerate(calls):
        keep = data.draw(st.integers(2, call.shape.tokens), label="keep")
        taken = _check_pruned(route, pruned, call, keep, seed, restores_stream=data.draw(st.booleans()))
        if taken:
            _check_keep_all(route, pruned, call)
        assert taken or number > 0
        event(f"call {number} taken: {taken}")


def _check_dense(route: Route, call: Call, seed: int) -> None:
    """With nothing to prune, the backend computes bit for bit what plain Inductor does."""
    torch.manual_seed(seed)
    expected = route(call.inputs, route.untouched)
    torch.manual_seed(seed)
    actual = route(call.inputs, route.dense)
    assert (actual is None) == (expected is None)
    for one, two in zip(actual or [], expected or [], strict=True):
        assert type(one) is type(two)
        if isinstance(one, Tensor):
            assert one.stride() == two.stride()
            torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == two


def _check_pruned(
    route: Route, pruned: Pruned, call: Call, keep: int, seed: int, *, restores_stream: bool
) -> bool:
    """What the untouched program gives on gathered tokens. False if Dynamo's graph is not for these sizes."""
    shape, stream = call.shape, call.inputs["x"]
    generator = torch.Generator().manual_seed(seed)
    base = stream if restores_stream else torch.randn(stream.shape, generator=generator, dtype=stream.dtype)
    if pruned.rows_per_sample is None:
        chosen = index = draw_index(shape, keep, seed)
    else:
        samples = shape.batch // pruned.rows_per_sample
        # Few levels, so that some are equal.
        chosen = torch.randint(0, shape.tokens, (samples, shape.tokens), generator=generator) / shape.tokens
        index = _lowest(chosen, keep).repeat(pruned.rows_per_sample, 1)
    actual = route(call.inputs, pruned.runner(Added(base, keep, chosen)))
    if actual is None:
        return False
    of_all = pruned.keys == "computed"
    expected = reference.pruned(route.case.blocks, shape, call.inputs, index, base, of_all)
    assert_equal([*actual, *pruned.maps], expected.outputs + expected.entropies)
    assert pruned.index is None or torch.equal(pruned.index, index[: len(chosen)])
    return True


def _check_keep_all(route: Route, pruned: Pruned, call: Call) -> None:
    """All tokens kept: nothing differs from the dense program, and the base is not seen."""
    shape = call.shape
    if pruned.rows_per_sample is None:
        chosen = torch.arange(shape.tokens).repeat(shape.batch, 1)
    else:
        chosen = torch.zeros(shape.batch // pruned.rows_per_sample, shape.tokens)
    unseen = torch.full(call.inputs["x"].shape, torch.nan, dtype=call.inputs["x"].dtype)
    actual = route(call.inputs, pruned.runner(Added(unseen, shape.tokens, chosen)))
    assert actual is not None
    expected = reference.dense(route.case.blocks, shape, call.inputs)
    assert_equal([*actual, *pruned.maps], expected.outputs + expected.entropies)


def _lowest(entropy: Tensor, keep: int) -> Tensor:
    """[G, K]: the tokens of lowest entropy [G, N], the lower index first among equals, ascending."""
    rows = [sorted(range(len(row)), key=row.__getitem__)[:keep] for row in entropy.tolist()]
    return torch.tensor([sorted(row) for row in rows])
