"""Whole generations at the shapes of published models, with random weights, on one GPU.

    python -m benchmarks.model_shapes [--model infinity-2b] [--rounds 7] [--only VARIANT ...] [--out DIR]

No public weights are needed: times do not depend on what is painted. The blocks are those of the embedded
model (self-attention with normed queries and keys and 2D rope, cross-attention, AdaLN, GELU), as
wide, as deep and over the scales of the model that is named; one picture under guidance, bfloat16. What is
timed and how: ``benchmarks.variant_timing``. Writes model-shapes-MODEL.json.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from benchmarks.variant_timing import command_line, measure, need_gpu, select, timed, variants, write
from examples.emojivar.config import Config
from examples.emojivar.model import EmojiVAR

PROMPT = "a rocket on a plain navy background"
_OUTPUT_STD = 0.5  # of layers that start at zero, times the root of their inputs' number

SHAPES: Mapping[str, Config] = {
    "infinity-2b": Config((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64), width=2048, depth=32, heads=16),
    "hart": Config((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64), width=1536, depth=24, heads=24),
    "var-d30": Config((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), width=1920, depth=30, heads=30),
    "var-d36-512": Config((1, 2, 3, 4, 6, 9, 13, 18, 24, 32), width=2304, depth=36, heads=36),
}


def random_model(config: Config, device: str, dtype: torch.dtype, seed: int = 0) -> EmojiVAR:
    """The embedded model's code with other sizes; no layer is left at zero, where a GPU would run faster."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = EmojiVAR(config).to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            parameter.normal_(std=_OUTPUT_STD / parameter.shape[-1] ** 0.5)
    return model


def generate(model: nn.Module, seed: int) -> tuple[float, float]:
    """See :func:`benchmarks.variant_timing.timed`."""
    with torch.inference_mode():
        return timed(torch.device("cuda"), lambda: model.generate([PROMPT], seed=seed))


def main() -> None:
    parser = command_line("model_shapes", __doc__)
    parser.add_argument("--model", choices=sorted(SHAPES), default="infinity-2b")
    arguments = parser.parse_args()
    need_gpu(parser)
    config = SHAPES[arguments.model]
    model = random_model(config, "cuda", torch.bfloat16)
    chosen = select(parser, arguments.only, variants(len(config.patch_nums)))
    results = measure(model, chosen, arguments.rounds, generate)
    shape = {**config.to_json(), "parameters": sum(parameter.numel() for parameter in model.parameters())}
    write(arguments.out / f"model-shapes-{arguments.model}.json", results, shape=shape)


if __name__ == "__main__":
    main()
