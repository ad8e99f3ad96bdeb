"""From the records of all batches to the figures of each policy, every one with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from toprovar_compiler.demo_contenders import EAGER, INDUCTOR
from toprovar_compiler.evaluation.bootstrap import LEVEL, RESAMPLES, Floats, Interval, Resampler, missing
from toprovar_compiler.evaluation.frechet import FEWEST_PICTURES, frechet_distances
from toprovar_compiler.evaluation.picture_metrics import MS_SSIM_SIDE, REGIONS, SSIM_SIDE
from toprovar_compiler.evaluation.suite import WITHOUT_SUITE
from toprovar_compiler.evaluation.table import Table
from toprovar_compiler.evaluation.variants import DENSE

NO_BOUND = "requires pruned tokens, and entropies of the scale before them"
NOT_TIMED = "not timed: --timed 0"
TOO_FEW = "requires at least"
"""How the reason begins where more pictures would have helped."""


def make_results(
    tables: Mapping[str, Table], true_scenes: Table | None, times: Sequence[Mapping[str, float]], seed: int
) -> dict[str, Any]:
    """JSON values: ``policies``, ``baselines``, ``true_scenes``, ``confidence``, ``pictures``.

    Args:
        tables: per policy, the dense one too.
        true_scenes: the suite's own pictures; None without a suite.
        times: per timed prompt, seconds by contender; may be empty.
        seed: of the resampling.
    """
    resampler = Resampler(tables[DENSE].prompts, seed)
    distances = _distances(tables, true_scenes, resampler)
    changes = _distances(tables, None if true_scenes is None else tables[DENSE], resampler)
    speeds = _speeds([EAGER, INDUCTOR, *tables], times, seed)
    policies = {
        name: {
            **_verdicts(table, tables[DENSE], resampler),
            "fid_checker": distances[name].to_json(),
            "fid_dense": changes[name].to_json(),
            **_likeness(table, resampler),
            "flops_ratio": resampler.ratio(
                table.counted("flops_total"), table.counted("flops_computed")
            ).to_json(),
            "error_bound": _error_bound(table),
            **speeds[name],
            "recompiles": sum(unit["counts"]["recompiles"] for unit in table.units),
            "fallbacks": _fallbacks(table),
        }
        for name, table in tables.items()
    }
    return {
        "pictures": len(tables[DENSE].rows),
        "confidence": {"level": LEVEL, "resamples": RESAMPLES, "over": "prompts", "seed": seed},
        "true_scenes": None if true_scenes is None else _scores(true_scenes, resampler),
        "baselines": {name: {"latency_s": speeds[name]["latency_s"]} for name in (EAGER, INDUCTOR)},
        "policies": policies,
    }


def not_computed(results: Mapping[str, Any]) -> dict[str, str]:
    """Metrics that no policy has a value of, with the reason."""
    policies = list(results["policies"].values())
    reasons = {metric: [_reason(figures[metric]) for figures in policies] for metric in policies[0]}
    return {metric: found[-1] for metric, found in reasons.items() if all(found)}


def _reason(figure: Any) -> str:
    """Why there is no value; empty where there is one."""
    reason: str = figure.get("reason", "") if isinstance(figure, dict) else ""
    return reason


def _scores(table: Table, resampler: Resampler) -> dict[str, Any]:
    right = table.column("correct")
    assert right is not None, "every judged picture has a verdict"
    tasks = {task: resampler.ratio(*table.of_task(task)).to_json() for task in table.tasks()}
    return {"composition": resampler.ratio(right, table.pictures).to_json(), "per_task": tasks}


def _verdicts(table: Table, dense: Table, resampler: Resampler) -> dict[str, Any]:
    """Scores of the suite, and how far the composition score is from the dense one's."""
    ours, theirs = table.column("correct"), dense.column("correct")
    if ours is None or theirs is None:
        nothing = missing(WITHOUT_SUITE).to_json()
        return {"composition": nothing, "composition_vs_dense": nothing, "per_task": nothing}
    difference = resampler.difference(ours, theirs, table.pictures)
    scores = _scores(table, resampler)
    return {
        "composition": scores["composition"],
        "composition_vs_dense": difference.to_json(),
        "per_task": scores["per_task"],
    }


def _distances(
    tables: Mapping[str, Table], reference: Table | None, resampler: Resampler
) -> dict[str, Interval]:
    """Frechet distance of each policy's features to the reference's: true scenes for the same prompts, or the
    dense pictures of the same seeds."""
    if reference is None:
        return dict.fromkeys(tables, missing(WITHOUT_SUITE))
    count = len(reference.rows)
    if count < FEWEST_PICTURES:
        reason = f"{TOO_FEW} {FEWEST_PICTURES} pictures, got {count}; pass more --prompts"
        return dict.fromkeys(tables, missing(reason))
    weights = np.concatenate([np.ones((1, count)), resampler.counts[:, reference.prompt_of]])
    sets = [table.features() for table in tables.values()]
    found = frechet_distances(sets, reference.features(), torch.from_numpy(weights)).numpy()
    return {name: resampler.centred(float(row[0]), row[1:]) for name, row in zip(tables, found, strict=True)}


def _likeness(table: Table, resampler: Resampler) -> dict[str, Any]:
    """How like the dense pictures the policy's are: whole, and by region."""
    squares, energies = table.column("mse"), table.column("energy")
    assert squares is not None, "every picture is compared"
    assert energies is not None, "every picture is compared"
    regions: dict[str, Any] = missing(WITHOUT_SUITE).to_json()
    if "regions" in table.rows[0]:
        regions = {name: _region(table, name, resampler) for name in REGIONS}
    return {
        "ssim": _mean(table, "ssim", SSIM_SIDE, resampler),
        "psnr": resampler.psnr(squares, table.pictures).to_json(),
        "relative_error": resampler.ratio(squares, energies).to_json(),
        "ms_ssim": _mean(table, "ms_ssim", MS_SSIM_SIDE, resampler),
        "regions": regions,
    }


def _mean(table: Table, name: str, side: int, resampler: Resampler) -> dict[str, Any]:
    sums = table.column(name)
    if sums is None:
        return missing(f"requires pictures of at least {side} pixels a side").to_json()
    return resampler.ratio(sums, table.pictures).to_json()


def _region(table: Table, name: str, resampler: Resampler) -> dict[str, Any]:
    """Share of all pixels, PSNR and SSIM over the region's pixels of all pictures."""
    pixels = _known(table.region(name, "pixels"))
    squares = _known(table.region(name, "squares"))
    similarity = table.region(name, "similarity")
    everywhere = sum((_known(table.region(region, "pixels")) for region in REGIONS), np.zeros_like(pixels))
    ssim = missing(f"requires pictures of at least {SSIM_SIDE} pixels a side")
    if similarity is not None:
        ssim = resampler.ratio(similarity, pixels)
    return {
        "share": resampler.ratio(pixels, everywhere).to_json(),
        "psnr": resampler.psnr(squares, pixels).to_json(),
        "ssim": ssim.to_json(),
    }


def _known(sums: Floats | None) -> Floats:
    assert sums is not None, "every region has pixels and errors, be they 0"
    return sums


def _speeds(
    names: Sequence[str], times: Sequence[Mapping[str, float]], seed: int
) -> dict[str, dict[str, Any]]:
    """Medians over the timed prompts: of seconds, and of the ratio for the same prompt."""
    if not times:
        nothing = missing(NOT_TIMED).to_json()
        return {
            name: {"latency_s": nothing, "speedup_vs_eager": nothing, "speedup_vs_inductor": nothing}
            for name in names
        }
    resampler = Resampler(len(times), seed)
    seconds = {name: np.array([turn[name] for turn in times]) for name in names}
    return {
        name: {
            "latency_s": resampler.median(ours).to_json(),
            "speedup_vs_eager": resampler.median(seconds[EAGER] / ours).to_json(),
            "speedup_vs_inductor": resampler.median(seconds[INDUCTOR] / ours).to_json(),
        }
        for name, ours in seconds.items()
    }


def _error_bound(table: Table) -> dict[str, float | str | None]:
    """The paper's bound beside the measured ``relative_error``: each term's mean over the batches."""
    bounds = [unit["counts"]["error_bound"] for unit in table.units]
    if None in bounds:
        return {"value": None, "reason": NO_BOUND}
    terms = ("rho", "scale", "layer", "token", "total")
    return {term: sum(bound[term] for bound in bounds) / len(bounds) for term in terms}


def _fallbacks(table: Table) -> dict[str, int]:
    """Every reason why something ran dense, with its count."""
    total: Counter[str] = Counter()
    for unit in table.units:
        total.update(unit["counts"]["fallbacks"])
    return dict(sorted(total.items()))
