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
from tests.property.compiled import Added, Pruned, Route
from tests.property.programs import Shape
from tests.property.strategies import MIXING, Case, good_cases, hard_cases, other_shapes, rows_per_sample

GOOD_EXAMPLES = 12
HARD_EXAMPLES = 4
OTHER_SIZES = 3

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
    event(f"dense graph: {dense}")
    with torch._inductor.config.patch({} if vectorised else _SCALAR):
        route = Route(case, reference.make_inputs(case.shape, case.blocks, seed), with_dense=dense)
        assert route.typed is not None, route.reason
        pruned = Pruned(route.typed, keys, data.draw(rows_per_sample(case)))
        _check_at_all_sizes(route, pruned, seed, data)


@settings(_compiled, max_examples=HARD_EXAMPLES)
@given(case=hard_cases(), seed=_seeds, keys=_keys, data=st.data())
def test_near_misses_run_as_in_plain_inductor(case: Case, seed: int, keys: str, data: st.DataObject) -> None:
    with torch._inductor.config.patch(_SCALAR):
        route = Route(case, reference.make_inputs(case.shape, case.blocks, seed), with_dense=True)
        if route.typed is None:
            event("refused")
            _check_dense(route, case.shape, seed)
            return
        event("rewritten")
        assert case.hard != MIXING, "tokens were mixed, and the graph was typed all the same"
        _check_at_all_sizes(route, Pruned(route.typed, keys, data.draw(rows_per_sample(case))), seed, data)


def _check_at_all_sizes(route: Route, pruned: Pruned, seed: int, data: st.DataObject) -> None:
    """The first call compiles; what runs after it must be right at the sizes that it accepts."""
    others = [data.draw(other_shapes(route.case), label="sizes") for _ in range(OTHER_SIZES)]
    for shape in (route.case.shape, *others):
        if route.dense is not None:
            _check_dense(route, shape, seed)
        keep = data.draw(st.integers(2, shape.tokens), label="keep")
        taken = _check_pruned(route, pruned, shape, keep, seed, restores_stream=data.draw(st.booleans()))
        if taken:
            _check_keep_all(route, pruned, shape, seed)
        event(
            f"other sizes taken: {taken}"
            if shape is not route.case.shape
            else f"gate: {pruned.rows_per_sample}"
        )
    event(f"variants refused: {pruned.refused}")


def _check_dense(route: Route, shape: Shape, seed: int) -> None:
    """With nothing to prune, the backend computes bit for bit what plain Inductor does."""
    inputs = reference.make_inputs(shape, route.case.blocks, seed)
    torch.manual_seed(seed)
    expected = route(inputs, route.untouched)
    torch.manual_seed(seed)
    actual = route(inputs, route.dense)
    assert (actual is None) == (expected is None)
    for one, two in zip(actual or [], expected or [], strict=True):
        assert type(one) is type(two)
        if isinstance(one, Tensor):
            assert one.stride() == two.stride()
            torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == two


def _check_pruned(
    route: Route, pruned: Pruned, shape: Shape, keep: int, seed: int, *, restores_stream: bool
) -> bool:
    """What the untouched program gives on gathered tokens. False if Dynamo's graph is not for these sizes."""
    inputs = reference.make_inputs(shape, route.case.blocks, seed)
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(inputs["x"].shape, generator=generator, dtype=inputs["x"].dtype)
    if pruned.rows_per_sample is None:
        chosen = index = draw_index(shape, keep, seed)
    else:
        samples = shape.batch // pruned.rows_per_sample
        # Few levels, so that some are equal.
        chosen = torch.randint(0, shape.tokens, (samples, shape.tokens), generator=generator) / shape.tokens
        index = _lowest(chosen, keep).repeat(pruned.rows_per_sample, 1)
    actual = route(inputs, pruned.runner(Added(None if restores_stream else base, keep, chosen)))
    if actual is None:
        return False
    expected = reference.pruned(
        route.case.blocks,
        shape,
        inputs,
        index,
        inputs["x"] if restores_stream else base,
        pruned.keys == "computed",
    )
    assert_equal([*actual, *pruned.maps], expected.outputs + expected.entropies)
    assert pruned.index is None or torch.equal(pruned.index, index[: len(chosen)])
    return True


def _check_keep_all(route: Route, pruned: Pruned, shape: Shape, seed: int) -> None:
    """All tokens kept: nothing differs from the dense program, and the base is not seen."""
    inputs = reference.make_inputs(shape, route.case.blocks, seed)
    expected = reference.dense(route.case.blocks, shape, inputs)
    if pruned.rows_per_sample is None:
        chosen = torch.arange(shape.tokens).repeat(shape.batch, 1)
    else:
        chosen = torch.zeros(shape.batch // pruned.rows_per_sample, shape.tokens)
    added = Added(torch.full_like(inputs["x"], torch.nan), shape.tokens, chosen)
    actual = route(inputs, pruned.runner(added))
    assert actual is not None
    assert_equal([*actual, *pruned.maps], expected.outputs + expected.entropies)


def _lowest(entropy: Tensor, keep: int) -> Tensor:
    """[G, K]: the tokens of lowest entropy [G, N], the lower index first among equals, ascending."""
    rows = [sorted(range(len(row)), key=row.__getitem__)[:keep] for row in entropy.tolist()]
    return torch.tensor([sorted(row) for row in rows])
