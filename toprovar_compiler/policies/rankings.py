"""Policies that are toprovar but for the order of the tokens: controls that tell what the order is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Decision, Step
from toprovar_compiler.policies.calibration import Calibration
from toprovar_compiler.policies.entropy_source import BaseSource, EntropySource
from toprovar_compiler.policies.token_noise import TokenNoise
from toprovar_compiler.policies.toprovar import ToprovarPolicy


class InvertedPolicy(ToprovarPolicy):
    """Keeps the tokens of highest entropy, as NOVA (arXiv 2602.01345) argues; all else is toprovar."""

    name = "inverted"

    def make_source(self, calibration: Calibration | None) -> EntropySource:
        return _Negated(super().make_source(calibration))


class RandomPolicy(ToprovarPolicy):
    """Keeps tokens at random; all else is toprovar.

    The choice of a sample depends on ``policy_seed``, scale, layer and the codes of its earlier scales, so
    that it is the same in a batch and alone. Where codes are not seen, all samples share one choice.
    """

    name = "random"

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self._order = _RandomOrder(options.policy_seed)
        super().__init__(options, schedule)

    def make_source(self, calibration: Calibration | None) -> EntropySource:
        return self._order

    def decide(self, step: Step, stream: Tensor) -> Decision:
        self._order.device = stream.device
        return super().decide(step, stream)


class _Negated:
    """Another source's scores with the sign changed."""

    def __init__(self, source: EntropySource) -> None:
        self._source = source
        self.reads_entropy = source.reads_entropy
        self.start_generation = source.start_generation
        self.observe, self.observe_codes = source.observe, source.observe_codes
        self.complaints = source.complaints

    @property
    def missing(self) -> str | None:
        return self._source.missing

    @property
    def learning(self) -> bool:
        return self._source.learning

    def scores(self, step: Step) -> Tensor | None:
        scores = self._source.scores(step)
        return None if scores is None else -scores


class _RandomOrder(BaseSource):
    """Random scores, computed where the tokens are."""

    reads_entropy = False
    missing: str | None = None

    def __init__(self, seed: int) -> None:
        self._noise, self.device = TokenNoise(seed), torch.device("cpu")

    def start_generation(self) -> None:
        self._noise.start_generation()

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        self._noise.observe_codes(codes)

    def scores(self, step: Step) -> Tensor:
        return self._noise.numbers(step, (step.scale, step.layer), self.device).float()
