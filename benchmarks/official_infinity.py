"""Whole generations of Infinity's official code, its source untouched, with random weights, on one GPU.

    git clone https://github.com/FoundationVision/Infinity && git -C Infinity checkout 4c27bbb
    pip install timm einops imageio pytz torchvision
    python -m benchmarks.official_infinity --code Infinity [--model 2b] [--words 20] [--rounds 7] [--out DIR]

The model is built with the arguments of its ``tools/run_infinity.py`` and ``scripts/infer.sh``, and paints as
there: one picture of 1024 x 1024 over 13 scales, bits and decoder included, under autocast in bfloat16. Text
features are random, as T5 would give them for 20 tokens, or, with several ``--words``, for so many in turns,
the warm-up with the first number. The one line that docs/models.md asks for lets the
model hold its tokenizer. Times do not depend on what is painted. Variants, "wall" and "busy" are those of
``benchmarks.variant_timing``. Without ``flash_attn``, PyTorch's build of its kernels is called
(``benchmarks.flash_attn_operator``). Writes official-infinity-MODEL-PIXELS.json, or -lengths.json.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import flash_attn_operator, official_code
from benchmarks.variant_timing import command_line, measure, need_gpu, select, timed, variants, write

MODELS: Mapping[str, Mapping[str, Any]] = {
    "2b": {"depth": 32, "embed_dim": 2048, "num_heads": 16, "block_chunks": 8},
    "layer12": {"depth": 12, "embed_dim": 768, "num_heads": 8, "block_chunks": 4},
}
_CONSTRUCTED: Mapping[str, Any] = {
    "text_channels": 2048,
    "text_maxlen": 512,
    "shared_aln": True,
    "checkpointing": "full-block",
    "fused_norm": True,
    "pad_to_multiplier": 128,
    "add_lvl_embeding_only_first_block": 1,
    "rope2d_each_sa_layer": 1,
    "rope2d_normalized_by_hw": 2,
    "inference_mode": True,
    "train_h_div_w_list": [1.0],
    "drop_path_rate": 0.1,
    "mlp_ratio": 4,
}
_BITS, _GUIDANCE, _TEMPERATURE, _TOP_K, _TOP_P = 32, 4.0, 0.5, 900, 0.97
_WORDS = (20,)
_MOST_WORDS = 512
_STD = 0.02


def build(code: Path, arguments: Mapping[str, Any], pixels: str, device: str, seed: int = 0) -> Any:
    """The official model, with random weights, holding its tokenizer.

    Args:
        pixels: "0.06M", "0.25M" or "1M": how large pictures are.

    Raises:
        FileNotFoundError: ``code`` is no checkout of Infinity.
    """
    official_code.use(code, "FoundationVision/Infinity", "infinity/models/infinity.py")
    flash_attn_operator.provide()
    from infinity.models.bsq_vae.vae import vae_model  # type: ignore[import-not-found]  # of the checkout
    from infinity.models.infinity import Infinity  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    channels = [1, 2, 4, 4, 4]
    vae = vae_model(None, "dynamic", _BITS, 2**_BITS, encoder_ch_mult=channels, decoder_ch_mult=channels).to(
        device
    )
    model = Infinity(vae_local=vae, pn=pixels, **_CONSTRUCTED, **arguments).to(device)
    for parameter in (*model.parameters(), *vae.parameters()):
        parameter.data.normal_(std=_STD)
    for block in model.unregistered_blocks:
        block.bfloat16()
    model.rng = torch.Generator(device)
    model.tokenizer = (vae,)
    return model.eval().requires_grad_(False)


def schedule(pixels: str) -> list[tuple[int, int, int]]:
    """Of square pictures: frames, rows and columns of each scale."""
    from infinity.utils.dynamic_resolution import (  # type: ignore[import-not-found]
        dynamic_resolution_h_w,
    )

    return [(1, rows, columns) for _, rows, columns in dynamic_resolution_h_w[1.0][pixels]["scales"]]


def text_features(
    channels: int, words: int, device: str, seed: int = 0
) -> tuple[Tensor, list[int], Tensor, int]:
    """What ``encode_prompt`` of the official script gives for a prompt of so many words, at random."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(words, channels, generator=generator).to(device)
    begins = torch.tensor([0, words], dtype=torch.int32, device=device)
    return features, [words], begins, words


def word_count(text: str) -> int:
    """Of a prompt, as a command line has it."""
    if not text.isdecimal() or not 0 < int(text) <= _MOST_WORDS:
        raise argparse.ArgumentTypeError(f"requires a number of words from 1 to {_MOST_WORDS}, got {text!r}")
    return int(text)


def generate(
    model: Any, seed: int, scales: Sequence[tuple[int, int, int]], text: tuple[Any, ...]
) -> tuple[float, float]:
    """See :func:`benchmarks.variant_timing.timed`."""
    paint = functools.partial(
        model.autoregressive_infer_cfg,
        vae=model.tokenizer[0],
        scale_schedule=list(scales),
        label_B_or_BLT=text,
        g_seed=seed,
        cfg_list=[_GUIDANCE] * len(scales),
        tau_list=[_TEMPERATURE] * len(scales),
        top_k=_TOP_K,
        top_p=_TOP_P,
        returns_vemb=1,
        cfg_insertion_layer=[0],
        vae_type=_BITS,
        ret_img=True,
        inference_mode=True,
    )
    device = text[0].device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, cache_enabled=True):
        return timed(device, paint)


def blocks(model: Any) -> Iterable[nn.Module]:
    found: Iterable[nn.Module] = model.unregistered_blocks
    return found


def main() -> None:
    parser = command_line("official_infinity", __doc__)
    parser.add_argument("--code", type=Path, required=True, help="a checkout of the official repository")
    parser.add_argument("--model", choices=sorted(MODELS), default="2b")
    parser.add_argument("--pixels", choices=("0.06M", "0.25M", "1M"), default="1M")
    parser.add_argument(
        "--words", nargs="+", type=word_count, default=_WORDS, help="of the prompts, in turns"
    )
    arguments = parser.parse_args()
    need_gpu(parser)
    shape = MODELS[arguments.model]
    model = build(arguments.code, shape, arguments.pixels, "cuda")
    scales, channels = schedule(arguments.pixels), _CONSTRUCTED["text_channels"]
    lengths = "-lengths" if len(arguments.words) > 1 else ""
    texts = [text_features(channels, words, "cuda") for words in arguments.words]
    results = measure(
        model,
        select(parser, arguments.only, variants(len(scales))),
        arguments.rounds,
        lambda made, seed: generate(made, seed, scales, texts[seed % len(texts)]),
        blocks,
    )
    write(
        arguments.out / f"official-infinity-{arguments.model}-{arguments.pixels}{lengths}.json",
        results,
        official_commit=official_code.commit(arguments.code),
        flash_attn=flash_attn_operator.provide(),
        shape={
            **shape,
            "scales": scales,
            "words": list(arguments.words),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
    )


if __name__ == "__main__":
    main()
