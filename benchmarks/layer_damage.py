"""Which layers can be pruned, and what tells so: the layer dimension (section 4) on the embedded model.

    python -m benchmarks.layer_damage [--prompts 32] [--batch 8] [--seed 0] [--gains scale-exit bypass]
        [--out benchmarks/results]

Measured against dense pictures of the same prompts and seeds, with 30 % of the tokens of the last three
scales kept: the damage of each layer, 1 - SSIM where it alone is pruned and pruned tokens pass it by; and its
gain, the SSIM that comes back per FLOP where it alone runs in full (first half of the prompts). Statistics of
each layer come from dense runs: at the last scale before pruning, which a policy can read in time, and over
the pruned scales, which it cannot. Spearman's correlation over the layers tells which of them predicts
damage: the statistic is that of one half of the prompts, the damage that of the other.

Then half as many other prompts compare budgets at equal FLOPs: the layers that are worst to prune run in full
and the others are pruned harder, or all are pruned alike. What is finished is kept beside the report
(``.parts``): a run that was broken off goes on, and one of more prompts paints only what is new.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kept import Kept
from benchmarks.layer_budgets import equal_flops, in_full, pruned_alone, strongest
from benchmarks.layer_pictures import Pictures
from benchmarks.layer_statistics import STATISTICS, Watcher
from benchmarks.layer_tables import tables
from benchmarks.measure import environment
from benchmarks.rank_correlation import Floats, against_chance, over_prompts, spearman
from examples.emojivar import EmojiVAR, load
from examples.emojivar.prompt_sets import held_out_prompts
from toprovar_compiler.evaluation.bootstrap import Resampler
from toprovar_compiler.policies.calibration import calibration_for
from toprovar_compiler.schedule import LATE_SCALES, stated_schedule

KEEP_RATIO = 0.3
# One ranking for all layers, so that damage does not say how well a layer's own entropies rank.
FIXED = {"entropy_source": "calibrated", "pruned_keys": "absent"}
RESTORATIONS = ("scale-exit", "bypass")  # the default first
CONTEST_RATIO, FULL_LAYERS = 0.5, (1, 4)  # of the budgets: at 0.3 four full layers would take too much
PREDICTS = 0.7  # the least |rho|, from either half to the other


def watch(model: EmojiVAR, prompts: Sequence[str], batch: int, start: int, kept: Kept) -> dict[str, Floats]:
    """Of dense eager runs: "statistic, before" and "statistic, pruned" -> [prompts, layers]."""
    calibration = calibration_for(model, stated_schedule(model), None)
    assert calibration is not None, "the embedded model comes with its calibration"
    watcher = Watcher(model, calibration.gates, range(start - 1, len(model.patch_nums)))
    batches = []
    for first in range(0, len(prompts), batch):
        texts = list(prompts[first : first + batch])
        batches.append(kept.get(["statistics", first, texts], lambda: watcher.watch(texts, seed=first)))  # noqa: B023
    found = {}
    for name in STATISTICS:
        values = np.concatenate([np.array(of_batch[name]) for of_batch in batches])
        found[f"{name}, before"], found[f"{name}, pruned"] = values[..., 0], values[..., 1:].mean(-1)
    return found


def correlations(statistics: Mapping[str, Floats], damage: Floats, seed: int) -> dict[str, Any]:
    """Of every statistic [prompts, L] in one half of the prompts with the damage, alike, in the other."""
    half = len(damage) // 2
    first, second = slice(0, half), slice(half, 2 * half)
    found: dict[str, Any] = {name: {} for name in statistics}
    for way, own, other in (("first to second", first, second), ("second to first", second, first)):
        of_layers = np.stack([values[own].mean(0) for values in statistics.values()])
        chances = against_chance(of_layers, damage[other].mean(0), seed)
        for (name, values), p, p_of_strongest in zip(statistics.items(), *chances, strict=True):
            found[name][way] = over_prompts(values[own], damage[other], seed)
            found[name][way] |= {"p": float(p), "p_of_strongest": float(p_of_strongest)}
    for ways in found.values():
        one, two = (way["rho"] for way in ways.values())
        ways["weaker_rho"] = min(abs(one), abs(two)) if one * two > 0 else 0.0
        ways["predicts"] = ways["weaker_rho"] >= PREDICTS
    return found


def means(values: Floats, seed: int) -> list[dict[str, Any]]:
    """The mean over prompts of [prompts, L], with its interval, for each layer."""
    resampler, ones = Resampler(len(values), seed), np.ones(len(values))
    return [resampler.ratio(column, ones).to_json() for column in values.T]


def gains(pictures: Pictures, options: Mapping[str, Any], layers: int, seed: int) -> dict[str, Any]:
    """Per layer: the SSIM that comes back where it alone runs in full, and for which share of dense FLOPs."""
    pruned = pictures.scores(in_full(options, layers, []))
    alone = [pictures.scores(in_full(options, layers, [layer])) for layer in range(layers)]
    gained = np.array([of.ssim for of in alone]).T - np.array(pruned.ssim)[:, None]
    flops = [of.flops - pruned.flops for of in alone]
    return {
        "all_pruned": {"ssim": float(np.mean(pruned.ssim)), "flops": pruned.flops},
        "ssim": means(gained, seed),
        "flops": flops,
        "ssim_per_flops": [float(gain) / cost for gain, cost in zip(gained.mean(0), flops, strict=True)],
    }


def contest(
    pictures: Pictures,
    options: Mapping[str, Any],
    choices: Mapping[str, Sequence[int]],
    layers: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Each choice's layers in full and the others pruned harder, minus the first choice, at equal FLOPs."""
    flops, budgets = pictures.flops(), {}
    for name, full in choices.items():
        ratio = equal_flops(flops, options["start_scale"], CONTEST_RATIO, len(full), layers)
        budgets[name] = in_full({**options, "keep_ratio": ratio}, layers, full)
    scores = {name: pictures.scores(budget) for name, budget in budgets.items()}
    ssim = np.array([of.ssim for of in scores.values()]).T  # [prompts, budgets]
    minus_uniform = means(ssim - ssim[:, :1], seed)
    return [
        {
            "budget": name,
            "full": list(choices[name]),
            "keep_ratio": budgets[name]["keep_ratio"],
            "flops": of.flops,
            "ssim": float(np.mean(of.ssim)),
            "ssim_of_prompts": of.ssim,
            "minus_uniform": difference,
            "fallbacks": of.fallbacks,
        }
        for (name, of), difference in zip(scores.items(), minus_uniform, strict=True)
    ]


def across(contests: dict[str, list[dict[str, Any]]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """The contests, each row also minus all layers alike under the default restoration."""
    default = np.array(contests[RESTORATIONS[0]][0]["ssim_of_prompts"])
    for rows in contests.values():
        ssim = np.array([row["ssim_of_prompts"] for row in rows]).T
        for row, difference in zip(rows, means(ssim - default[:, None], seed), strict=True):
            row["minus_default"] = difference
    return contests


def choices_of(study: Mapping[str, Any]) -> dict[str, list[int]]:
    """Which layers run in full, by name of what chooses them."""
    damage = [of["value"] for of in study["damage"]["ssim"]]
    best = study["best_statistic"]
    values, sign = study["statistics"][best], np.sign(study["correlations"][best]["first to second"]["rho"])
    choices: dict[str, list[int]] = {"all alike": []}
    choices |= {f"most damage, {count}": strongest(damage, count) for count in FULL_LAYERS}
    most = FULL_LAYERS[-1]
    return choices | {
        f"by {best}": strongest([sign * value for value in values], most),
        "Global by spectrum (the paper's)": strongest(study["statistics"]["spectrum, before"], most),
    }


def study_layers(model: EmojiVAR, arguments: argparse.Namespace, kept: Kept) -> dict[str, Any]:
    """Everything that the report says of the layers."""
    count, batch, seed, layers = arguments.prompts, arguments.batch, arguments.seed, len(model.blocks)
    half = count // 2
    prompts = [str(prompt) for prompt in held_out_prompts(count + half, seed=seed)]
    start = len(model.patch_nums) - LATE_SCALES
    statistics = watch(model, prompts[:count], batch, start, kept)
    options: dict[str, Any] = {"start_scale": start, "keep_ratio": KEEP_RATIO, **FIXED}
    bypass, pictures = {**options, "restoration": "bypass"}, Pictures(model, prompts[:count], batch, kept)
    alone = [pictures.scores(pruned_alone(bypass, layers, layer)) for layer in range(layers)]
    damage = 1 - np.array([of.ssim for of in alone]).T
    errors = np.array([of.feature_error for of in alone]).T
    found = correlations(statistics, damage, seed)
    study: dict[str, Any] = {
        "prompts": prompts,
        "statistics": {name: values.mean(0).tolist() for name, values in statistics.items()},
        "damage": {
            "ssim": means(damage, seed),
            "feature_error": means(errors, seed),
            "rho_of_halves": float(spearman(damage[:half].mean(0), damage[half:].mean(0))),
            "rho_with_feature_error": float(spearman(damage.mean(0), errors.mean(0))),
        },
        "correlations": found,
        "best_statistic": max(found, key=lambda name: found[name]["weaker_rho"]),
        "gains": {},
        "contests": {},
    }
    first, others = (Pictures(model, some, batch, kept) for some in (prompts[:half], prompts[count:]))
    for restoration in RESTORATIONS:
        own = {**options, "restoration": restoration}
        if restoration in arguments.gains:
            study["gains"][restoration] = gains(first, own, layers, seed)
        study["contests"][restoration] = contest(others, own, choices_of(study), layers, seed)
    return study | {"contests": across(study["contests"], seed)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=32, help="in two halves; half as many for budgets")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of prompts, resampling and permutations")
    parser.add_argument(
        "--gains", nargs="*", choices=RESTORATIONS, default=RESTORATIONS, help="where to measure gains"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    if arguments.batch < 1 or arguments.prompts < 2 or arguments.prompts % (2 * arguments.batch):
        parser.error(
            f"--prompts requires two halves of whole batches, got {arguments.prompts} in batches of "
            f"{arguments.batch}; give a multiple of {2 * max(arguments.batch, 1)}"
        )
    return arguments


def main() -> None:
    arguments = parse_arguments()
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"layer-damage-{arguments.device}.json"
    kept = Kept(path.with_suffix(".parts"))
    study = study_layers(load(device=arguments.device, dtype=dtype), arguments, kept)
    path.write_text(json.dumps({"environment": environment(), "about": STATISTICS, **study}, indent=1))
    print(tables(study))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
