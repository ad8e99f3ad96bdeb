"""What a judge of a model's pictures must offer, and how one is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from toprovar_compiler.cli_model import DEFAULT_MODEL, find_function
from toprovar_compiler.errors import UnsupportedModelError

DEFAULT_SUITE = "examples.emojivar.suite:load_suite"
NO_SUITE = "none"
WITHOUT_SUITE = "no suite judges this model: pass --suite module:function"


class Verdict(NamedTuple):
    """Whether a picture shows what its prompt says.

    Attributes:
        task: the kind of prompt, e.g. "count"; scores are reported for each.
        correct: everything that the prompt says is there.
        reason: what is missing or wrong; empty where nothing is.
    """

    task: str
    correct: bool
    reason: str


@runtime_checkable
class Suite(Protocol):
    """Prompts, true pictures and a judge for one model. Images are [B, 3, H, W] float32 in [0, 1], on any
    device; what belongs to one picture must not depend on the others of its batch."""

    name: str
    fingerprint: str
    """Changes with anything that a score depends on: weights, thresholds, the set of prompts."""

    def prompts(self, count: int, seed: int) -> list[str]:
        """Held-out prompts, ``count`` different ones; a ValueError where there are not so many."""

    def true_images(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Pictures [B, 3, H, W] as a perfect model would paint them; a ValueError for a foreign prompt."""

    def score(self, prompts: Sequence[str], images: Tensor) -> Sequence[Verdict | tuple[str, bool, str]]:
        """One verdict per picture."""

    def features(self, images: Tensor) -> Tensor:
        """[B, F] float, for the Frechet distance."""

    def foreground(self, images: Tensor) -> Tensor:
        """[B, H, W] bool: where the things that the prompt names are."""


def load_suite(reference: str | None, model_reference: str, device: torch.device) -> Suite | None:
    """Call ``function(device=...)`` of ``module``.

    Args:
        reference: ``module:function``; "none" for no suite; None for the default model's own, which other
            models do not have.
        model_reference: the model's ``module:function``.
        device: where the suite's own networks shall run.

    Raises:
        OptionError: malformed reference.
        MissingDependencyError: the module needs a package that is not installed.
        UnsupportedModelError: there is no such function, it failed, or it gave something else.
    """
    if reference is None:
        reference = DEFAULT_SUITE if model_reference == DEFAULT_MODEL else NO_SUITE
    if reference == NO_SUITE:
        return None
    load = find_function(reference, "--suite", DEFAULT_SUITE)
    try:
        suite = load(device=device)
    except Exception as error:
        raise UnsupportedModelError(f"suite {reference} failed to load: {error}") from error
    if not isinstance(suite, Suite):
        wanted = "name, fingerprint, prompts, true_images, score, features and foreground"
        missing = [name for name in wanted.replace(" and", ",").split(", ") if not hasattr(suite, name)]
        raise UnsupportedModelError(
            f"suite {reference} requires an object with {wanted}, got {type(suite).__name__} without "
            f"{', '.join(missing)}; pass another --suite, or --suite {NO_SUITE}"
        )
    return suite
