"""The checker's weights on disk: one safetensors file, and an index with its digest and the labels."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from examples.emojivar.vocabulary import BACKGROUND_COLOURS, HUES, KINDS, STYLES
from examples.emojivar.weights import (
    ASSETS,
    FORMAT_VERSION,
    REMEDY,
    WeightsError,
    check_tensors,
    read_index,
    read_shard,
    write_shard,
)

from .checker import Checker
from .net import CheckerNet, NetConfig

INDEX_NAME = "checker.index.json"
SHARD_NAME = "checker.safetensors"
FORMAT = "emojivar-checker"
LABELS = {
    "kinds": list(KINDS),
    "hues": list(HUES),
    "styles": list(STYLES),
    "background_colours": list(BACKGROUND_COLOURS),
}


def load_checker(device: str | torch.device = "cpu", folder: str | Path = ASSETS) -> Checker:
    """The trained checker, in float32.

    Args:
        device: where its network shall run.
        folder: holds `checker.index.json` and the file that it names.

    Raises:
        WeightsError: a file is missing, truncated, altered or foreign; it names the file and the remedy.
    """
    path = Path(folder) / INDEX_NAME
    index = read_index(path, FORMAT)
    if index.get("labels") != LABELS:
        raise WeightsError(
            f"weights index {path} requires the kinds, hues and backgrounds of this code, got others; "
            f"{REMEDY}"
        )
    tensors: dict[str, Tensor] = {}
    for name, entry in index["shards"].items():
        tensors.update(read_shard(path.parent / name, entry))
    try:
        config = NetConfig.from_json(index["config"])
    except TypeError as error:
        raise WeightsError(
            f"weights index {path} requires the fields of NetConfig, got others ({error}); {REMEDY}"
        ) from None
    with torch.random.fork_rng(devices=[]):  # the random initial weights are not worth the caller's stream
        net = CheckerNet(config)
    check_tensors(path, net, tensors)
    net.load_state_dict(tensors)
    digests = ", ".join(entry["sha256"] for entry in index["shards"].values())
    return Checker(net.to(device), fingerprint=digests)


def save_checker(net: CheckerNet, folder: str | Path) -> None:
    """Write weights in bfloat16, what is one number per channel in float32, and the index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in sorted(net.state_dict().items()):
        stored = tensor.detach().cpu()
        tensors[name] = (stored.bfloat16() if stored.dim() > 1 else stored).contiguous()
    index = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "config": net.config.to_json(),
        "labels": LABELS,
        "shards": {SHARD_NAME: write_shard(tensors, folder / SHARD_NAME)},
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
