"""How toprovar compares with its rivals at equal measured time, or at equal FLOPs, prompt by prompt.

    python -m benchmarks.pairs FOLDER [--by latency_s|flops_ratio]

FOLDER is what ``toprovar evaluate --out`` left. Each rival meets the slowest of toprovar's variants that are
no slower than it, or the fastest where all are slower. Differences are toprovar's minus the rival's, over the
same prompts and seeds, with the intervals of the evaluation's resamples: score and SSIM are better above 0,
the Frechet distance below.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from toprovar_compiler.evaluation.bootstrap import LEVEL, Floats, Interval, Resampler
from toprovar_compiler.evaluation.frechet import frechet_distances
from toprovar_compiler.evaluation.run import RESULTS
from toprovar_compiler.evaluation.run_folder import read_json
from toprovar_compiler.evaluation.store import TRUE_SCENES, Store
from toprovar_compiler.evaluation.table import Table

OURS = "toprovar"
RIVALS = ("fastvar", "skipvar", "fixed-exit", "random")
COSTS = ("latency_s", "flops_ratio")


class Pair(NamedTuple):
    """A rival, and toprovar's variant that it meets; what both cost, the smaller the faster."""

    rival: str
    ours: str
    rival_cost: float
    our_cost: float


def matched(costs: Mapping[str, float]) -> list[Pair]:
    """Each rival with toprovar's slowest variant that is no slower; with the fastest one if all are.

    Raises:
        ValueError: there is no variant of toprovar.
    """
    variants = sorted((cost, name) for name, cost in costs.items() if _policy(name) == OURS)
    if not variants:
        raise ValueError(f"a comparison requires variants of toprovar, got none among: {', '.join(costs)}")
    pairs = []
    for name, cost in costs.items():
        if _policy(name) in RIVALS:
            as_fast = [variant for variant in variants if variant[0] <= cost] or variants[:1]
            our_cost, ours = as_fast[-1]
            pairs.append(Pair(name, ours, cost, our_cost))
    return pairs


def differences(ours: Table, rival: Table, true_scenes: Table, resampler: Resampler) -> dict[str, Interval]:
    """Of composition score, SSIM and Frechet distance to the true scenes: ``ours`` minus ``rival``."""
    found = {}
    for metric in ("correct", "ssim"):
        mine, others = ours.column(metric), rival.column(metric)
        assert mine is not None, "every picture is judged and compared"
        assert others is not None, "every picture is judged and compared"
        found[metric] = resampler.difference(mine, others, ours.pictures)
    counts = resampler.counts[:, true_scenes.prompt_of]
    weights = torch.from_numpy(np.concatenate([np.ones((1, counts.shape[1])), counts]))
    sets = [ours.features(), rival.features()]
    distances: Floats = frechet_distances(sets, true_scenes.features(), weights).numpy()
    apart = distances[0] - distances[1]
    # Resamples have fewer different pictures: their spread around their median is laid around the value.
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(apart[1:] - np.median(apart[1:]), (tail, 1 - tail))
    found["fid_checker"] = Interval(float(apart[0]), float(apart[0] + low), float(apart[0] + high))
    return found


def table(folder: Path, by: str) -> str:
    """Markdown, one row a rival."""
    results = read_json(folder / RESULTS)
    figures = results["policies"]
    values = {name: found[by]["value"] for name, found in figures.items()}
    costs = {name: 1 / value if by == "flops_ratio" else value for name, value in values.items()}
    prompts = results["run"]["prompts"]
    resampler = Resampler(prompts, results["confidence"]["seed"])
    titles = ["rival", by, "toprovar's", by, "composition", "SSIM", "FID (checker)"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    true_scenes = _read(folder, TRUE_SCENES, prompts)
    for pair in sorted(matched(costs), key=lambda pair: -pair.rival_cost):
        mine, theirs = _read(folder, pair.ours, prompts), _read(folder, pair.rival, prompts)
        found = differences(mine, theirs, true_scenes, resampler)
        cells = [pair.rival, f"{values[pair.rival]:.3f}", pair.ours, f"{values[pair.ours]:.3f}"]
        digits = {"correct": 3, "ssim": 4, "fid_checker": 2}
        cells += [_cell(found[metric], places) for metric, places in digits.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _policy(name: str) -> str:
    return name.partition("[")[0]


def _read(folder: Path, policy: str, prompts: int) -> Table:
    return Table(Store(folder).read_units(policy), prompts)


def _cell(found: Interval, digits: int) -> str:
    bounds = [bound for bound in (found.low, found.high) if bound is not None]
    return f"{found.value:+.{digits}f} [{', '.join(f'{bound:+.{digits}f}' for bound in bounds)}]"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by", choices=COSTS, default=COSTS[0])
    arguments = parser.parse_args(argv)
    print(table(arguments.folder, arguments.by))


if __name__ == "__main__":
    main()
