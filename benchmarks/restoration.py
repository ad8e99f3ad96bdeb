"""Which parts suit the embedded model: entropy source, restoration and pruned keys, by likeness to dense.

    python -m benchmarks.restoration [--prompts 8] [--seeds 2] [--keep-ratio 0.3 0.5] [--out FOLDER]

Every candidate paints the same prompts with the same seeds as the dense run; SSIM and PSNR are to the dense
picture of the same seed, averaged. "exit-all" keeps two tokens a scale: the floor, as good as stopping before
the late scales.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import toprovar_compiler
from benchmarks.measure import environment
from examples.emojivar import load
from examples.emojivar.prompt_sets import held_out_prompts
from toprovar_compiler.evaluation.picture_metrics import compare

FLOOR_RATIO = 1e-6
CANDIDATES: dict[str, dict[str, Any]] = {
    "scale-exit, calibrated": {},
    "scale-exit, layer-mean": {"entropy_source": "layer-mean"},
    "scale-exit, layer-mean, keys computed": {"entropy_source": "layer-mean", "pruned_keys": "computed"},
    "bypass, calibrated": {"restoration": "bypass"},
    "bypass, layer-mean": {"restoration": "bypass", "entropy_source": "layer-mean"},
    "bypass, same-layer": {"restoration": "bypass", "entropy_source": "same-layer"},
    "bypass, same-layer, odd layers": {
        "restoration": "bypass",
        "entropy_source": "same-layer",
        "layer_budgets": [0.0, 1.0] * 8,
    },
    "bypass, last-full-layer": {"restoration": "bypass", "entropy_source": "last-full-layer"},
    "bypass, same-layer, keys computed": {
        "restoration": "bypass",
        "entropy_source": "same-layer",
        "pruned_keys": "computed",
    },
    "cached-update, same-layer": {"restoration": "cached-update", "entropy_source": "same-layer"},
    "cached-update, same-layer, odd layers": {
        "restoration": "cached-update",
        "entropy_source": "same-layer",
        "layer_budgets": [0.0, 1.0] * 8,
    },
}


def likeness(images: torch.Tensor, dense: torch.Tensor) -> list[tuple[float, float]]:
    """(SSIM, PSNR in dB) of each picture [3, H, W] in [0, 1] to its dense one."""
    records = compare(images.float().clamp(0, 1), dense.float().clamp(0, 1), foreground=None)
    return [(record["ssim"], -10 * math.log10(record["mse"])) for record in records]


def paint(model: Any, prompts: list[str], seeds: int) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model.generate(prompts, seed=seed) for seed in range(seeds)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--keep-ratio", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    model = load(device=arguments.device, dtype=torch.float32)
    prompts = [str(prompt) for prompt in held_out_prompts(arguments.prompts, seed=0)]
    toprovar_compiler.compile(model, policy="dense")
    dense = paint(model, prompts, arguments.seeds)
    rows: list[dict[str, Any]] = []
    runs = [("exit-all", FLOOR_RATIO, {})]
    runs += [(name, ratio, parts) for ratio in arguments.keep_ratio for name, parts in CANDIDATES.items()]
    print("| candidate | keep ratio | SSIM | PSNR dB | block FLOPs |\n|---|---|---|---|---|")
    for name, ratio, parts in runs:
        toprovar_compiler.compile(model, keep_ratio=ratio, **parts)
        scores = np.array(likeness(paint(model, prompts, arguments.seeds), dense))
        done = toprovar_compiler.summary(model).to_dict()
        rows.append(
            {
                "candidate": name,
                "keep_ratio": ratio,
                "ssim": float(scores[:, 0].mean()),
                "psnr_db": float(scores[:, 1].mean()),
                "psnr_standard_error": float(scores[:, 1].std(ddof=1) / len(scores) ** 0.5),
                "flops_ratio": done["flops_total"] / done["flops_computed"],
                "fallbacks": done["fallbacks"],
            }
        )
        last = rows[-1]
        print(
            f"| {name} | {ratio:g} | {last['ssim']:.3f} | {last['psnr_db']:.1f} "
            f"| {last['flops_ratio']:.2f}x fewer |",
            flush=True,
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"restoration-{arguments.device}.json"
    path.write_text(json.dumps({"environment": environment(), "prompts": prompts, "rows": rows}, indent=1))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
