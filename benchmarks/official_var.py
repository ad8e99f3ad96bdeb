"""Whole generations of VAR's official code, its source untouched, with random weights, on one GPU.

    git clone https://github.com/FoundationVision/VAR && git -C VAR checkout 78b9539
    python -m benchmarks.official_var --code VAR [--model d36-512] [--pictures 1] [--rounds 7] [--out DIR]

The model is built by its own ``build_vae_var`` and painted by its own ``autoregressive_infer_cfg``, codes and
decoder included, under autocast in bfloat16 as its demo does in float16. The weights of its blocks are
bfloat16, so that no variant converts them at each call. Times do not depend on what is painted. Variants,
"wall" and "busy" are those of ``benchmarks.variant_timing``. The official code needs huggingface_hub. Writes
official-var-MODEL-bPICTURES.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import official_code
from benchmarks.variant_timing import command_line, measure, need_gpu, select, timed, variants, write

MODELS: Mapping[str, Mapping[str, Any]] = {
    "d30": {"depth": 30, "patch_nums": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)},
    "d36-512": {"depth": 36, "patch_nums": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), "shared_aln": True},
}
_LABEL, _GUIDANCE, _TOP_K, _TOP_P = 207, 4.0, 900, 0.95  # of the official demo
_STD = 0.02


def build(code: Path, arguments: Mapping[str, Any], device: str, seed: int = 0) -> nn.Module:
    """The official model of these arguments of ``build_vae_var``, with random weights.

    Raises:
        FileNotFoundError: ``code`` is no checkout of VAR.
    """
    official_code.use(code, "FoundationVision/VAR", "models/var.py")
    from models import build_vae_var  # type: ignore[import-not-found]  # of the checkout

    torch.manual_seed(seed)
    vae, model = build_vae_var(device=device, **arguments)
    # The official code leaves the decoder's memory as it finds it, for weights to be loaded into.
    for parameter in vae.parameters():
        parameter.data.normal_(std=_STD)
    model.blocks.to(torch.bfloat16)
    built: nn.Module = model.eval().requires_grad_(False)
    return built


def generate(model: Any, seed: int, pictures: int = 1) -> tuple[float, float]:
    """See :func:`benchmarks.variant_timing.timed`."""
    device = model.lvl_1L.device
    labels = torch.full((pictures,), _LABEL, device=device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        return timed(
            device,
            lambda: model.autoregressive_infer_cfg(
                B=pictures, label_B=labels, g_seed=seed, cfg=_GUIDANCE, top_k=_TOP_K, top_p=_TOP_P
            ),
        )


def main() -> None:
    parser = command_line("official_var", __doc__)
    parser.add_argument("--code", type=Path, required=True, help="a checkout of the official repository")
    parser.add_argument("--model", choices=sorted(MODELS), default="d36-512")
    parser.add_argument("--pictures", type=int, default=1)
    arguments = parser.parse_args()
    need_gpu(parser)
    shape = MODELS[arguments.model]
    model = build(arguments.code, shape, "cuda")
    chosen = select(parser, arguments.only, variants(len(shape["patch_nums"])))
    results = measure(
        model, chosen, arguments.rounds, lambda made, seed: generate(made, seed, arguments.pictures)
    )
    write(
        arguments.out / f"official-var-{arguments.model}-b{arguments.pictures}.json",
        results,
        official_commit=official_code.commit(arguments.code),
        shape={
            **shape,
            "pictures": arguments.pictures,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
    )


if __name__ == "__main__":
    main()
