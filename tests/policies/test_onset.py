"""When pruning starts: D of section 4, decided while a generation runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Dense, Outcome, Prune, Step
from toprovar_compiler.policies.rankings import RandomPolicy
from toprovar_compiler.policies.toprovar import ToprovarPolicy

SCHEDULE = (1, 4, 9, 16, 25, 36)
LAYERS = 2


def _step(scale: int, layer: int, samples: int) -> Step:
    return Step(scale, layer, SCHEDULE[scale], sum(SCHEDULE[:scale]), samples, 1)


def _map(tokens: int, low: int) -> Tensor:
    """Entropies [tokens] of which ``low`` lie below the mean."""
    return torch.cat([torch.zeros(low), torch.ones(tokens - low)])


def _heads(entropy: Tensor) -> Tensor:
    """Two heads [B, 2, N] of which neither has the shares of their mean, ``entropy`` [B, N]."""
    tilt = torch.arange(entropy.shape[1]) / 4
    return torch.stack([entropy - tilt, entropy + tilt], 1)


def _start(low_of: list[list[int]], samples: int = 1, **options: Any) -> tuple[int | None, list[str]]:
    """The first pruned scale of a generation, and the complaints.

    Args:
        low_of: per scale from 0 on, how many tokens of each sample have a low entropy in both layers.
    """
    policy = ToprovarPolicy(Options(**{"start_scale": 3, "keep_ratio": 0.5, **options}), SCHEDULE)
    policy.start_generation()
    first, complaints = None, []
    for scale in range(len(SCHEDULE)):
        for layer in range(LAYERS):
            step = _step(scale, layer, samples)
            stream = torch.zeros(samples, step.tokens, 2)
            decision = policy.decide(step, stream)
            if isinstance(decision, Prune):
                first = scale if first is None else first
                assert decision.choice is not None
                entropy, kept = torch.rand(samples, 2, decision.keep), decision.choice.kept
                policy.observe(step, Outcome(entropy, kept, stream, stream, step.prefix + decision.keep))
                continue
            assert decision.fallback is None
            lows = low_of[scale] if scale < len(low_of) else [1] * samples
            entropy = torch.stack([_map(step.tokens, low) for low in lows])
            assert decision.entropy or scale < 2 or first is not None
            # Maps that were not asked for, as a recorder gets them, must change nothing.
            policy.observe(step, Outcome(_heads(entropy), None, stream, stream, step.prefix + step.tokens))
        complaints += policy.complaints()
    return first, complaints


NONE = [[0], [0], [0]]


@pytest.mark.parametrize(
    ("low", "start"),
    [
        ([*NONE, [0]], None),  # never: no scale is pruned (A.5.4)
        ([[1], [4], [4], [0]], 3),  # 4 of 9 at scale 2: what runs next may be pruned
        ([[1], [4], [3], [7]], 4),  # 7 of 16 at scale 3
        ([[1], [4], [3], [6], [10]], 5),  # exactly 10 of 25
    ],
)
def test_pruning_starts_after_the_first_scale_that_reaches_the_threshold(
    low: list[list[int]], start: int | None
) -> None:
    filled = low + [[0]] * (len(SCHEDULE) - len(low))
    first, complaints = _start(filled, scale_threshold=0.4)
    assert first == start
    assert len(complaints) == (3 if start is None else start - 3)
    assert all("scale_threshold=0.4 in every sample" in reason for reason in complaints)


def test_scales_before_the_floor_do_not_count() -> None:
    """At scale 1 three of four tokens are low, but its map lies before the one before ``start_scale``."""
    low = [[0], [3], [0], [0], [0], [0]]
    assert _start(low, scale_threshold=0.4)[0] is None
    assert _start(low, scale_threshold=0.4, start_scale=2)[0] == 2


def test_the_other_direction() -> None:
    low = [[0], [3], [4], [8], [2], [0]]
    assert _start(low, scale_threshold=0.4)[0] == 3
    first, complaints = _start(low, scale_threshold=0.4, scale_crossing="at-most")
    assert first == 5
    assert "had not come down to" in complaints[0]


def test_the_later_sample_rules() -> None:
    early, late = [0, 0, 4, 7, 0, 0], [0, 0, 0, 7, 0, 0]
    both = [list(pair) for pair in zip(early, late, strict=True)]
    alone = [_start([[low] for low in lows], scale_threshold=0.4)[0] for lows in (early, late)]
    assert alone == [3, 4]
    assert _start(both, samples=2, scale_threshold=0.4)[0] == 4
    same = [[low, low] for low in early]
    assert _start(same, samples=2, scale_threshold=0.4)[0] == 3


def test_without_a_threshold_nothing_is_waited_for() -> None:
    assert _start(NONE) == (3, [])


def test_random_tokens_need_entropy_while_they_wait_and_none_afterwards() -> None:
    policy = RandomPolicy(Options(policy="random", start_scale=3, scale_threshold=0.4), SCHEDULE)
    assert policy.decide(_step(2, 0, 1), torch.zeros(1, 9, 2)) == Dense(entropy=True)
    plain = RandomPolicy(Options(policy="random", start_scale=3), SCHEDULE)
    assert plain.decide(_step(2, 0, 1), torch.zeros(1, 9, 2)) == Dense(entropy=False)


def test_a_map_that_is_not_finite_reaches_no_threshold() -> None:
    policy = ToprovarPolicy(Options(start_scale=3, scale_threshold=0.0), SCHEDULE)
    step, stream = _step(2, 0, 1), torch.zeros(1, 9, 2)
    policy.observe(step, Outcome(torch.full((1, 2, 9), torch.nan), None, stream, stream, 14))
    assert isinstance(policy.decide(_step(3, 0, 1), torch.zeros(1, 16, 2)), Dense)


def _per_scale(model: Any) -> list[bool]:
    """Whether each scale of the last generation was computed whole."""
    rows = toprovar_compiler.summary(model).to_dict()["per_scale"]
    return [row["tokens_computed"] == row["tokens_total"] for row in rows]


def test_a_model_prunes_from_there_on(under: Any, model: Any, labels: Tensor) -> None:
    plain = under(start_scale=3).autoregressive_infer_cfg(labels)
    toprovar_compiler.reset()
    waited = under(start_scale=3, scale_threshold=0.0).autoregressive_infer_cfg(labels)
    assert torch.equal(waited, plain), "any ratio reaches 0"
    assert _per_scale(model) == [True, True, True, False, False]
    dense = under(policy="dense").autoregressive_infer_cfg(labels)
    toprovar_compiler.reset()
    compiled = under(start_scale=3, scale_threshold=1.0)
    with pytest.warns(UserWarning, match="scale_threshold=1.0"):
        never = compiled.autoregressive_infer_cfg(labels)
    torch.testing.assert_close(never, dense)
    assert _per_scale(model) == [True] * 5
    reasons = toprovar_compiler.summary(model).to_dict()["fallbacks"]
    assert [count for reason, count in reasons.items() if "scale_threshold" in reason] == [2]


def test_a_batch_that_agrees_gives_what_its_samples_give(under: Any, model: Any, labels: Tensor) -> None:
    options = {"start_scale": 2, "scale_threshold": 0.0, "keep_ratio": 0.5}
    together = under(**options).autoregressive_infer_cfg(labels)
    alone = [under(**options).autoregressive_infer_cfg(label[None]) for label in labels]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_threshold": 1.5}, "one number in \\[0, 1\\] or None, got 1.5"),
        ({"scale_threshold": float("nan")}, "finite"),
        ({"scale_threshold": [0.4]}, "one number in"),
        ({"scale_threshold": "0.4"}, "requires a number"),
        ({"scale_crossing": "above"}, "'at-least', 'at-most', got 'above'"),
        ({"scale_threshold": 0.4, "policy": "fastvar"}, "a rule of its own"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**options)
