"""What eq. 6 says as it is printed, on the embedded model: P_keep of every token of every layer and scale.

    python -m benchmarks.retention [--prompts 8] [--range 0 0.9] [--out FOLDER]

Dense pictures, whose blocks return their entropies; eq. 5 is taken over the tokens of a layer and scale, of
the mean over heads, and R is 1. Of each scale: the sum of P_keep over its N tokens, which is what
retention="literal" keeps, its spread over layers and pictures, the smallest and the largest P_keep, and these
again with the entropies normalised to a mean of 1 instead of a sum of 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import environment
from examples.emojivar import load
from examples.emojivar.prompt_sets import held_out_prompts
from toprovar_compiler.calibration.recorder import HeadRecorder
from toprovar_compiler.compiled_model import CompiledModel
from toprovar_compiler.options import Options


def probabilities(entropy: Tensor, phi: float, low: float, high: float) -> Tensor:
    """P_keep of eq. 6 with R = 1, of normalised entropies [..., N]."""
    return 1.0 - (low + (high - low) * phi * entropy).clamp(0.0, 1.0)


def spread(entropy: Tensor, phi: float, low: float, high: float) -> dict[str, Any]:
    """Of one scale's entropies [pictures, L, N], averaged over heads."""
    tokens = entropy.shape[-1]
    share = entropy / entropy.sum(-1, keepdim=True)
    printed = probabilities(share, phi, low, high)
    to_mean = probabilities(share * tokens, phi, low, high)
    return {
        "tokens": tokens,
        "expected": float(printed.sum(-1).mean()),
        "expected_spread": float(printed.sum(-1).amax() - printed.sum(-1).amin()),
        "printed": [float(printed.min()), float(printed.max())],
        "mean_of_1": [float(to_mean.min()), float(to_mean.max())],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--range", type=float, nargs=2, default=[0.0, 0.9], metavar=("A_MIN", "A_MAX"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    model: Any = load(device=arguments.device, dtype=torch.float32)
    prompts = [str(prompt) for prompt in held_out_prompts(arguments.prompts, seed=0)]
    recorder = HeadRecorder()
    compilation = CompiledModel(model, Options(policy="dense"))
    compilation.session.policy = recorder
    with compilation.active(model), torch.inference_mode():
        model.generate(prompts, seed=0)
    maps = recorder.take(len(prompts))
    rows = {}
    for scale in sorted(maps):
        # Shares of log Nk: what they are divided by is the same for a layer's tokens, and eq. 5 takes it out.
        rows[scale] = spread(maps[scale].double().mean(2), (scale + 1) / (max(maps) + 1), *arguments.range)
        print(scale, rows[scale], flush=True)
    record = {"environment": environment(), "range": arguments.range, "prompts": prompts, "scales": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"retention-{arguments.device}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
