"""What the figures of a run depend on: results of two runs are mixed only if all of it is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import toprovar_compiler
from toprovar_compiler.environment import commit
from toprovar_compiler.evaluation.suite import Suite


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer that is stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def run_identity(
    model: nn.Module, suite: Suite | None, prompts: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """JSON values: versions, model, device, suite, prompts, and ``settings`` as they are."""
    weight = next(model.parameters())
    found = commit()
    return {
        "toprovar": toprovar_compiler.__version__,
        "commit": found["id"] if found else None,
        "torch": torch.__version__,
        "device": _device_name(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "weights": weights_digest(model),
        "suite": suite.name if suite else None,
        "suite_fingerprint": suite.fingerprint if suite else None,
        "prompts": len(prompts),
        "prompts_digest": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        **settings,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
