"""Weights on disk: safetensors shards, and an index with their digests, the sizes and the vocabulary."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialise
from torch import Tensor, nn

from .config import Config
from .model import EmojiVAR
from .vocabulary import Vocabulary

ASSETS = Path(__file__).parent / "assets"
INDEX_NAME = "emojivar.index.json"
FORMAT = "emojivar"
FORMAT_VERSION = 1
MAX_SHARD_BYTES = 16_000_000
SHARD_HEADER_ROOM = 200_000
REMEDY = "restore it from the repository ('git checkout -- examples/emojivar/assets') or save the model again"


class WeightsError(RuntimeError):
    """A weights file is missing, damaged or belongs to something else."""


def load(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, folder: str | Path = ASSETS
) -> EmojiVAR:
    """The trained model, in eval mode and without gradients.

    Args:
        device: where to put it.
        dtype: of the transformer, the encoder and the decoder; see :func:`cast`.
        folder: holds the index and the shards that it names.

    Raises:
        WeightsError: a file is missing, truncated, altered or foreign; it names the file and the remedy.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"load requires a floating-point dtype, got {dtype}; pass e.g. torch.bfloat16")
    folder = Path(folder)
    index_path = folder / INDEX_NAME
    index = read_index(index_path)
    tensors: dict[str, Tensor] = {}
    for name, entry in index["shards"].items():
        tensors.update(read_shard(folder / name, entry))
    with torch.random.fork_rng(devices=[]):  # the random initial weights are not worth the caller's stream
        model = EmojiVAR(_config(index_path, index))
    check_tensors(index_path, model, tensors)
    model.load_state_dict(tensors)
    return cast(model, dtype).eval().requires_grad_(False).to(device)


def cast(model: EmojiVAR, dtype: torch.dtype) -> EmojiVAR:
    """Put the heavy parts in ``dtype``, in place. The quantiser stays in at least float32.

    Its codes are sums of small corrections, and a low precision would move the later ones.
    """
    for name, child in model.named_children():
        if name != "tokenizer":
            child.to(dtype)
    model.tokenizer.to(torch.promote_types(dtype, torch.float32))
    model.tokenizer.encoder.to(dtype)
    model.tokenizer.decoder.to(dtype)
    return model


def save(model: EmojiVAR, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``model`` as shards of at most 16 MB, and the index that names them.

    Weights are stored in ``dtype``; the tokenizer's vectors and codebook, small and sensitive, in float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    free = MAX_SHARD_BYTES - SHARD_HEADER_ROOM
    for name, tensor in sorted(model.state_dict().items()):
        exact = name.startswith("tokenizer.") and (tensor.dim() < 2 or "codebook" in name)
        stored = tensor.detach().to("cpu", torch.float32 if exact else dtype).contiguous()
        if stored.nbytes > free:
            shards.append({})
            free = MAX_SHARD_BYTES - SHARD_HEADER_ROOM
        shards[-1][name] = stored
        free -= stored.nbytes
    entries: dict[str, Any] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"emojivar-{number:05d}-of-{len(shards):05d}.safetensors"
        entries[name] = write_shard(shard, folder / name)
    index = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "config": model.config.to_json(),
        "vocabulary": list(model.vocabulary.words),
        "shards": entries,
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def write_shard(tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Write a safetensors file, and return the entry of an index that names it."""
    data = serialise(tensors, metadata={"format": "pt"})
    path.write_bytes(data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"weights file {path} is missing; {REMEDY}") from None
    except OSError as error:
        raise WeightsError(f"weights file {path} cannot be read ({error.strerror}); {REMEDY}") from error


def read_index(path: Path, expected: str = FORMAT) -> dict[str, Any]:
    """The index, with every field of the right kind; WeightsError where its format is not as expected."""
    try:
        index = json.loads(_read_bytes(path))
    except ValueError as error:
        raise WeightsError(
            f"weights index {path} requires JSON, got something else ({error}); {REMEDY}"
        ) from None
    if not isinstance(index, dict) or index.get("format") != expected:
        raise WeightsError(f"weights index {path} requires format {expected!r}, got another file; {REMEDY}")
    if index.get("version") != FORMAT_VERSION:
        raise WeightsError(
            f"weights index {path} requires version {FORMAT_VERSION}, got {index.get('version')!r}; "
            "use the code that wrote it, or save the model again"
        )
    shards = index.get("shards")
    plain = isinstance(shards, dict) and all(
        Path(name).name == name and isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()
        for name, entry in shards.items()
    )
    if not plain or not isinstance(index.get("config"), dict):
        raise WeightsError(
            f"weights index {path} requires 'config' and 'shards' with their sizes and digests; {REMEDY}"
        )
    return index


def _config(path: Path, index: dict[str, Any]) -> Config:
    try:
        config = Config.from_json(index["config"])
    except TypeError as error:
        raise WeightsError(
            f"weights index {path} requires the fields of Config, got others ({error}); {REMEDY}"
        ) from None
    words = Vocabulary().words
    if index.get("vocabulary") != list(words) or config.vocabulary_size != len(words):
        raise WeightsError(
            f"weights index {path} requires the vocabulary of this code ({len(words)} words); {REMEDY}"
        )
    return config


def read_shard(path: Path, entry: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one shard, after checking its size and digest; WeightsError if they do not fit."""
    data = _read_bytes(path)
    if len(data) != entry["bytes"]:
        raise WeightsError(
            f"weights file {path} requires {entry['bytes']} bytes, got {len(data)}: truncated; {REMEDY}"
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise WeightsError(
            f"weights file {path} requires SHA-256 {entry['sha256']}, got {digest}: altered; {REMEDY}"
        )
    try:
        return parse_safetensors(data)
    except SafetensorError as error:
        raise WeightsError(
            f"weights file {path} requires safetensors, got something else ({error}); {REMEDY}"
        ) from error


def check_tensors(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Every tensor of the model is there, in its shape, and no other; WeightsError if not."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(own.keys() | got.keys()):
        if own.get(name) != got.get(name):
            raise WeightsError(
                f"weights of {path} require tensor {name!r} as {own.get(name)}, "
                f"got {got.get(name)}: foreign; {REMEDY}"
            )
