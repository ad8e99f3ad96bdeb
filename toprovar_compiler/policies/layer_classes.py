"""The layer dimension: which layers are Global and run in full, by the running generation's entropy maps."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.options import DEFAULT_LAYER_BETA, Options
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.layer_spectrum import centred_spectrum, raw_spectrum
from toprovar_compiler.schedule import grid_of

_SPECTRA = {"spectrum": raw_spectrum, "centred-spectrum": centred_spectrum}
_AMBIGUOUS = "a layer lay between Global and Detail (layer_band): it ran in full, as Global ones do"
_ALL_GLOBAL = "no layer is Detail in every sample: nothing was pruned"


def representation_score(ratio: Tensor, beta: float) -> Tensor:
    """R = exp(-beta (varrho - 1)) of eq. 4: 1 for Detail layers, 0 for Global ones.

    ratio ``[...]`` floating of at least 1, as :func:`raw_spectrum` gives it (infinite: R is 0; NaN stays),
    beta above 0. Returns ``[...]`` of the same dtype. Raises nothing.
    """
    return torch.exp(-beta * (ratio - 1.0))


def representation_scores(maps: Tensor, options: Options) -> Tensor:
    """R of each map with the options' beta, of maps less their mean where ``layer_dimension`` says so.

    Args:
        maps: entropies ``[..., N]`` float32 or float64 on a token grid, averaged over heads.

    Returns:
        ``[...]`` float64.
    """
    grid = grid_of(maps.shape[-1])
    assert grid is not None, "maps without a grid are not collected"
    kind = "centred-spectrum" if options.layer_dimension == "centred-spectrum" else "spectrum"
    beta = DEFAULT_LAYER_BETA[kind] if options.layer_beta is None else float(options.layer_beta)
    return representation_score(_SPECTRA[kind](maps.unflatten(-1, grid)).ratio, beta)


class LayerClasses:
    """Global or Detail, for each layer of a generation (section 4).

    R of eq. 4 comes from varrho, which is taken from each layer's entropy map, averaged over heads, in the
    first row of each sample, at the last scale that ran in full before pruning starts; the class holds for
    all pruned scales. A layer is Detail where R is at or above the band in every sample of the batch; where
    some sample says Global or lies in the band (ambiguous, A.5.4), it runs in full. Where ``layer_dimension``
    is no spectrum, every layer is Detail and nothing is read.
    """

    def __init__(self, options: Options) -> None:
        self._options, self._classifies = options, options.layer_dimension in _SPECTRA
        self._low, self._high = options.layer_band
        self.start_generation()

    def start_generation(self) -> None:
        self._scale = -1
        self._maps: dict[int, Tensor] = {}
        self._detail: set[int] | None = None
        self._complaints: list[str] = []

    @property
    def reads_entropy(self) -> bool:
        """Whether blocks must return their entropy maps for this."""
        return self._classifies and self._detail is None

    def observe(self, step: Step, outcome: Outcome) -> None:
        """Entropies of a block that ran in full, at a scale that may be the last one before pruning."""
        if not self.reads_entropy or outcome.entropy is None or grid_of(step.tokens) is None:
            return
        if self._scale != step.scale:
            self._scale, self._maps = step.scale, {}
        self._maps[step.layer] = outcome.entropy[: step.samples].mean(1)

    def is_detail(self, step: Step) -> bool | None:
        """Whether the step's layer may be pruned; None where there are no maps to tell by.

        Reads the classes of all layers back once a generation.
        """
        if not self._classifies:
            return True
        if self._detail is None and self._scale < step.scale and self._maps:
            self._decide()
        return None if self._detail is None else step.layer in self._detail

    def complaints(self) -> list[str]:
        """Reasons, since the last call, why layers ran in full that are not clearly Global."""
        reasons, self._complaints = self._complaints, []
        return reasons

    def _decide(self) -> None:
        layers = sorted(self._maps)
        maps = torch.stack([self._maps[layer] for layer in layers], 1)  # [samples, L, N]
        self._maps = {}
        score = representation_scores(maps, self._options)
        detail = (score >= self._high).all(0)
        unclear = ~(score <= self._low).any(0) & ~detail
        is_detail, is_unclear = torch.stack([detail, unclear]).tolist()
        self._detail = {layer for layer, yes in zip(layers, is_detail, strict=True) if yes}
        self._complaints = [_AMBIGUOUS] * sum(is_unclear)
        if not self._detail:
            self._complaints.append(_ALL_GLOBAL)
