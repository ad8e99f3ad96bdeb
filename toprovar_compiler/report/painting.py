"""Paints each prompt under the policy and dense, with the same seed, and keeps what the page shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from toprovar_compiler.cli_model import paint
from toprovar_compiler.cli_progress import Progress
from toprovar_compiler.compiled_model import CompiledModel
from toprovar_compiler.options import Options
from toprovar_compiler.policies import ToprovarPolicy
from toprovar_compiler.report.recording import Calls, EntropyRecorder, Recorder
from toprovar_compiler.summary import Summary


@dataclass(frozen=True)
class Painting:
    """One generation.

    Attributes:
        picture: [3, H, W] float32 in [0, 1], on the CPU.
        calls: of every block call that ran.
        kept: scale -> [N] in [0, 1], the share of layers that computed each token, for pruned scales.
    """

    picture: Tensor
    calls: Calls
    kept: Mapping[int, Tensor]


@dataclass(frozen=True)
class Pair:
    """A prompt painted twice from one seed."""

    prompt: str
    seed: int
    dense: Painting
    pruned: Painting


@dataclass(frozen=True)
class Painted:
    """All prompts, the options that were in force, a calibration's plan among them, and the summary of the
    policy's generations alone."""

    pairs: tuple[Pair, ...]
    options: Options
    summary: Summary


def paint_pairs(model: nn.Module, prompts: Sequence[str], seed: int, options: Options) -> Painted:
    """Paint ``prompts[i]`` from ``seed + i``, under the policy and dense.

    The policy paints first, so that its counts of compiled graphs are those of a run without a report.

    Raises:
        OptionError: ``options`` do not fit the model.
        UnsupportedModelError: the model has no repeated blocks, or gives no pictures.
        UnsupportedGraphError: pruning was due and not possible, under ``strict=True``.
        ValueError: the model refuses a prompt.
    """
    pruned = _Painter(model, options, Recorder)
    dense = _Painter(model, Options(policy="dense", blocks=options.blocks), EntropyRecorder)
    seeds = range(seed, seed + len(prompts))
    with Progress(2 * len(prompts)) as progress:
        paintings = []
        for name, painter in ((options.policy, pruned), ("dense, with entropy", dense)):
            for prompt, own_seed in zip(prompts, seeds, strict=True):
                progress.step(f"{name}: {prompt}")
                paintings.append(painter.paint(prompt, own_seed))
    pairs = zip(prompts, seeds, paintings[len(prompts) :], paintings[: len(prompts)], strict=True)
    return Painted(tuple(Pair(*pair) for pair in pairs), pruned.options(), pruned.summary())


class _Painter:
    """A model under some options, whose policy is recorded."""

    def __init__(self, model: nn.Module, options: Options, recorder: type[Recorder]) -> None:
        self._model, self._compilation = model, CompiledModel(model, options)
        self._session = self._compilation.session
        self._recorder = recorder(self._session.policy)
        self._session.policy = self._recorder

    def paint(self, prompt: str, seed: int) -> Painting:
        with self._compilation.active(self._model):
            picture = paint(self._model, [prompt], seed)[0]
            # That was the one to learn from: now as all later ones are.
            if self._session.policy.learning:
                picture = paint(self._model, [prompt], seed)[0]
        kept = {scale: shares[0].cpu() for scale, shares in self._session.kept_tokens().items()}
        return Painting(picture.detach().float().cpu(), self._recorder.take_calls(), kept)

    def options(self) -> Options:
        """Those in force: a calibration may have completed them."""
        policy = self._recorder.policy
        return policy.options if isinstance(policy, ToprovarPolicy) else self._session.options

    def summary(self) -> Summary:
        return Summary((self._session.counters,), self._session.error_bound())
