"""Fits SkipVAR's decision models to a model's own pictures: the authors' fitting code is not public.

    python -m toprovar_compiler.policies.skipvar_fit --prompts 256 --out decisions.json
    python -m toprovar_compiler.policies.skipvar_fit --prompts 256 --threshold .84 .9 --out decisions.json

The second writes ``decisions-0.84.json`` and ``decisions-0.9.json``.

Each prompt is painted dense, without its last one, two and three scales, and with the unconditional branch
replaced in these. A picture's label is the largest number for which it, and all smaller ones, keep an SSIM to
the dense picture of at least the threshold.
"""

from __future__ import annotations

import argparse
import operator
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from toprovar_compiler.api import policy_of
from toprovar_compiler.cli_arguments import EXIT_ERROR, EXIT_OK, add_model
from toprovar_compiler.cli_model import load_model, paint
from toprovar_compiler.cli_progress import Progress
from toprovar_compiler.errors import OptionError, ToprovarError, UnsupportedModelError
from toprovar_compiler.policies.artifacts import fingerprint
from toprovar_compiler.policies.skipvar import SkipvarPolicy
from toprovar_compiler.policies.skipvar_decisions import (
    FEATURES,
    MOST_SCALES,
    Decisions,
    Regression,
)
from toprovar_compiler.schedule import stated_schedule

THRESHOLD = 0.84
"""SSIM; the authors have models for 0.84, 0.86 and 0.88."""
_IMPOSSIBLE = -1e3  # the bias of a class that no picture has
_STEPS = 200
_FEWEST_SCALES = MOST_SCALES + 2  # two scales before the decision, and those that it is about


def fit_regression(features: Tensor, labels: Sequence[int]) -> Regression:
    """Softmax regression with the penalty ||weights||^2 / 2 on the summed loss, as scikit-learn's default.

    features ``[n, 2]``, labels 0 to ``MOST_SCALES``; n >= 1. A feature that does not vary has no weight.
    """
    features = features.double().cpu()
    centre, spread = features.mean(0), features.std(0, unbiased=False)
    spread = torch.where(spread > 0, spread, 1.0)
    x, y = (features - centre) / spread, torch.tensor(list(labels))
    possible = torch.zeros(MOST_SCALES + 1, dtype=torch.bool).index_fill(0, y, True)
    weights = torch.zeros(MOST_SCALES + 1, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(MOST_SCALES + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = torch.where(possible, x @ weights.t() + bias, _IMPOSSIBLE)
        value = cross_entropy(logits, y, reduction="sum") + weights.square().sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    final = torch.where(possible, bias.detach(), _IMPOSSIBLE)
    return Regression(
        centre=tuple(centre.tolist()),
        spread=tuple(spread.tolist()),
        weights=tuple(tuple(row) for row in weights.detach().tolist()),
        bias=tuple(final.tolist()),
    )


def label(similarities: Sequence[float], threshold: float) -> int:
    """SSIM without the last 1, 2, ... scales -> how many of them may go."""
    count = 0
    while count < len(similarities) and similarities[count] >= threshold:
        count += 1
    return count


def constant(count: int) -> Regression:
    """The decision model that says ``count`` of every picture."""
    bias = tuple(0.0 if number == count else _IMPOSSIBLE for number in range(MOST_SCALES + 1))
    nothing = (0.0,) * len(FEATURES)
    return Regression(nothing, (1.0,) * len(FEATURES), (nothing,) * (MOST_SCALES + 1), bias)


class Fitting:
    """What one model's decisions are fitted to.

    Args:
        model: eager, with ``generate(prompts, seed=...)``; it stays eager.
        scale_weights: of each scale's codes in the sum that is judged; None: 1 for all.
        folder: for files that are not needed afterwards.

    Raises:
        UnsupportedModelError: the model states no schedule of at least five scales.
        OptionError: not one weight per scale.
    """

    def __init__(self, model: nn.Module, scale_weights: Sequence[float] | None, folder: Path) -> None:
        schedule = stated_schedule(model)
        if schedule is None or len(schedule) < _FEWEST_SCALES:
            raise UnsupportedModelError(
                f"fitting SkipVAR requires a model that states at least {_FEWEST_SCALES} scales, "
                f"got {schedule}; set its attribute patch_nums"
            )
        weights = (1.0,) * len(schedule) if scale_weights is None else tuple(scale_weights)
        if len(weights) != len(schedule):
            raise OptionError(
                f"scale_weights requires one number per scale, got {len(weights)} for {len(schedule)} scales"
            )
        self._blank = Decisions(
            model=type(model).__name__,
            fingerprint=fingerprint(model),
            decision_scale=len(schedule) - 1 - MOST_SCALES,
            scale_weights=weights,
            threshold=1.0,
            samples=0,
            skip=constant(0),
            replace=constant(0),
        )
        counts = range(1, MOST_SCALES + 1)
        self._dense = _compiled(model, policy="dense")
        self._skipping = [
            _compiled(model, policy="fixed-exit", start_scale=len(schedule) - count) for count in counts
        ]
        self._replacing = []
        for count in counts:
            path = folder / f"replace-{count}.json"
            _with(self._blank, replace=constant(count)).save(path)
            self._replacing.append(_compiled(model, policy="skipvar", decisions=str(path)))
        self.features: list[Tensor] = []
        self.similarities: list[tuple[list[float], list[float]]] = []

    def paint(self, prompts: Sequence[str], seed: int) -> None:
        """Take one batch of prompts in."""
        from toprovar_compiler.evaluation.picture_metrics import compare  # torchmetrics is an extra

        dense = paint(self._dense, prompts, seed).float()

        def similarities(model: nn.Module) -> list[float]:
            return [found["ssim"] for found in compare(paint(model, prompts, seed).float(), dense, None)]

        skipped = [similarities(model) for model in self._skipping]
        replaced = [similarities(model) for model in self._replacing]
        policy = cast(SkipvarPolicy, policy_of(self._replacing[0]))
        if policy.features is None:
            raise UnsupportedModelError(
                "fitting SkipVAR requires residual codes that go through an nn.Embedding, saw none; "
                "toprovar_compiler.summary() has more"
            )
        self.features.append(policy.features)
        columns = zip(zip(*skipped, strict=True), zip(*replaced, strict=True), strict=True)
        self.similarities += [(list(skip), list(replace)) for skip, replace in columns]

    def decisions(self, threshold: float) -> Decisions:
        """Fit to all that was painted."""
        features = torch.cat(self.features)
        skip, replace = self.labels(threshold)
        return _with(
            self._blank,
            threshold=threshold,
            samples=len(features),
            skip=fit_regression(features, skip),
            replace=fit_regression(features, replace),
        )

    def labels(self, threshold: float) -> tuple[list[int], list[int]]:
        """How many scales may go, and how many unconditional branches, of each picture that was painted."""
        skip = [label(skipped, threshold) for skipped, _ in self.similarities]
        return skip, [label(replaced, threshold) for _, replaced in self.similarities]


def _compiled(model: nn.Module, **options: Any) -> nn.Module:
    return cast(nn.Module, torch.compile(model, backend="toprovar", options=options))


def _with(decisions: Decisions, **changes: Any) -> Decisions:
    return Decisions(**{**vars(decisions), **changes})


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m toprovar_compiler.policies.skipvar_fit")
    add_model(parser)
    parser.add_argument("--prompts", required=True, help="how many of the suite's, or a text file of them")
    parser.add_argument("--suite", help="module:function, as for toprovar evaluate")
    parser.add_argument("--batch", type=int, default=8, help="pictures at a time (default: %(default)s)")
    parser.add_argument(
        "--threshold",
        type=float,
        nargs="+",
        default=[THRESHOLD],
        help=f"SSIM (default: {THRESHOLD}); for each of several a file, -X before its suffix",
    )
    parser.add_argument(
        "--scale-weights", metavar="NAME", help="attribute of the model that scales each scale's codes"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args(argv)
    try:
        print(_run(arguments))
    except (ToprovarError, ValueError) as error:
        print(f"skipvar_fit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_OK


def _run(arguments: argparse.Namespace) -> str:
    from toprovar_compiler.evaluation.prompts import read_prompts
    from toprovar_compiler.evaluation.suite import load_suite

    model = load_model(arguments.model, arguments.device, arguments.dtype)
    suite = load_suite(arguments.suite, arguments.model, next(model.parameters()).device)
    prompts = read_prompts(arguments.prompts, arguments.seed, suite)
    weights = None
    if arguments.scale_weights is not None:
        weights = operator.attrgetter(arguments.scale_weights)(model).tolist()
    batches = range(0, len(prompts), arguments.batch)
    with tempfile.TemporaryDirectory() as folder, Progress(len(batches)) as progress, torch.no_grad():
        fitting = Fitting(model, weights, Path(folder))
        for begin in batches:
            progress.step(prompts[begin])
            fitting.paint(prompts[begin : begin + arguments.batch], arguments.seed + begin)
    several = len(arguments.threshold) > 1
    out: Path = arguments.out
    return "\n".join(
        _write(fitting, threshold, out.with_stem(f"{out.stem}-{threshold:g}") if several else out)
        for threshold in arguments.threshold
    )


def _write(fitting: Fitting, threshold: float, out: Path) -> str:
    fitting.decisions(threshold).save(out)
    skip, replace = (
        [labels.count(n) for n in range(MOST_SCALES + 1)] for labels in fitting.labels(threshold)
    )
    return (
        f"wrote {out}: of {len(fitting.similarities)} pictures, 0 to {MOST_SCALES} scales may go in {skip}, "
        f"unconditional branches in {replace}"
    )


if __name__ == "__main__":
    sys.exit(main())
