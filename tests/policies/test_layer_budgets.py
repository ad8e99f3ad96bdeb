"""Layers that keep different numbers of tokens by one ranking."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.policies.calibrations import gate, nearest, predicted
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.calibrated_entropy import CalibratedEntropy

SAMPLES, HEADS = 2, 4


def _entropies(tokens: int, generator: torch.Generator) -> Tensor:
    return 3 * torch.rand(SAMPLES, HEADS, tokens, generator=generator).double()


def test_layers_that_keep_more_predict_for_the_tokens_that_all_layers_ran() -> None:
    """A layer in full, one that keeps nine and one that keeps four of these, over caches of their own."""
    generator = torch.Generator().manual_seed(0)
    gates = {scale: gate(3, HEADS, seed=scale) for scale in (2, 3)}
    source, earlier = CalibratedEntropy(gates), [_entropies(9, generator) for _ in range(3)]
    for layer, entropy in enumerate(earlier):
        step = Step(2, layer, 9, 5, SAMPLES, 1)
        source.observe(step, Outcome(entropy, None, torch.empty(0), torch.empty(0), 14))
    more = torch.stack([torch.randperm(16, generator=generator)[:9].sort().values for _ in range(SAMPLES)])
    fewer, all_keys = more[:, [0, 2, 5, 8]], (30, 23, 18)
    whole, some, few = (_entropies(tokens, generator) for tokens in (16, 9, 4))
    for layer, (entropy, kept) in enumerate([(whole, None), (some, more), (few, fewer)]):
        outcome = Outcome(entropy, kept, torch.empty(0), torch.empty(0), all_keys[layer])
        source.observe(Step(3, layer, 16, 14, SAMPLES, 1), outcome)
    importance = [nearest(row, 16) for row in predicted(gates[2], earlier, 14)]
    for sample, row in enumerate(fewer.tolist()):
        for place, token in enumerate(row):
            spot = more[sample].tolist().index(token)
            own = (whole[sample, :, token], some[sample, :, spot], few[sample, :, place])
            # predicted() divides all by one logarithm, so what each is divided by goes before
            scaled = [
                e[None, :, None] * math.log(30) / math.log(k) for e, k in zip(own, all_keys, strict=True)
            ]
            importance[sample][token] = predicted(gates[3], scaled, 30)[0][0]
    scores = source.scores(Step(4, 0, 25, 30, SAMPLES, 1))
    assert scores is not None
    expected = torch.tensor([nearest(row, 25) for row in importance], dtype=torch.float64)
    # Scores are rounded to float32 once; a score near 0 is left of float64 sums of terms near 1.
    torch.testing.assert_close(
        scores.double(), -expected, rtol=2 * torch.finfo(torch.float32).eps, atol=1e-12
    )


@pytest.mark.parametrize("restoration", ["scale-exit", "bypass"])
@pytest.mark.parametrize("policy", ["toprovar", "inverted"])
def test_layers_keep_the_same_tokens_and_others(
    policy: Any, restoration: Any, under: Any, calibration_file: Path, labels: Tensor
) -> None:
    """A Global layer, one halfway and a Detail layer, alone and in a batch."""
    options = {"calibration": str(calibration_file), "restoration": restoration}
    compiled = under(policy=policy, layer_budgets=[0, 0.5, 1], **options)
    together, kept = compiled.autoregressive_infer_cfg(labels), toprovar_compiler.kept_tokens(compiled)
    assert toprovar_compiler.summary(compiled).to_dict()["fallbacks"] == {}
    for scale, (tokens, halfway, least) in {2: (9, 7, 5), 3: (16, 11, 6), 4: (36, 23, 11)}.items():
        shares = (3 * kept[scale]).round().int()
        counts = [[int((row == times).sum()) for times in (1, 2, 3)] for row in shares]
        assert counts == [[tokens - halfway, halfway - least, least]] * 3
    for i in range(len(labels)):
        alone = compiled.autoregressive_infer_cfg(labels[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_layers_that_all_run_in_full_leave_every_code(under: Any, model: Any, labels: Tensor) -> None:
    dense = under(policy="dense").autoregressive_infer_cfg(labels)
    compiled = under(layer_budgets=[0, 0, 0])
    picture = compiled.autoregressive_infer_cfg(labels)
    with pytest.warns(UserWarning, match="pruned nothing"):
        toprovar_compiler.summary(compiled)
    torch.testing.assert_close(picture, dense)
