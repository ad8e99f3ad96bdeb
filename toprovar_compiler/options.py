"""The options of the compiler: typed, validated, and unknown names refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, get_args

from toprovar_compiler.errors import OptionError
from toprovar_compiler.option_checks import check_choice as _check_choice
from toprovar_compiler.option_checks import check_count as _check_count
from toprovar_compiler.option_checks import check_guidance, check_retention
from toprovar_compiler.option_checks import numbered as _numbered
from toprovar_compiler.passes.prune_tokens import PrunedKeys

PolicyName = Literal["toprovar", "dense", "fastvar", "skipvar", "fixed-exit", "random", "inverted", "oracle"]
EntropySourceName = Literal["calibrated", "online", "layer-mean", "same-layer", "last-full-layer"]
RestorationName = Literal["scale-exit", "bypass", "cached-update"]
Crossing = Literal["at-least", "at-most"]
Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
DEFAULT_MODE: Mode = "default"
GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Those in which Inductor records CUDA graphs on a GPU."""
LayerDimension = Literal["off", "spectrum", "centred-spectrum"]
RetentionName = Literal["rank", "literal", "sampled"]

DEFAULT_KEEP_RATIO = 0.3
DEFAULT_LAYER_BETA = {"spectrum": 0.025, "centred-spectrum": 1.7}
"""beta of eq. 4, of which the paper gives no number: R is 1/2 at a ratio of 29, or of 1.4 of centred maps,
which part the embedded model's layers about in halves."""
DEFAULT_LAYER_BAND = (0.4, 0.6)


@dataclass(frozen=True)
class Options:
    """Options of :func:`toprovar_compiler.compile` and of ``torch.compile(..., options={...})``.

    Attributes:
        policy: "toprovar" prunes by entropy; "dense" runs every token (attention and all else as plain
            Inductor). "fastvar" prunes by distance to the mean token; "skipvar" leaves out late scales or
            unconditional branches as a decision model says; "fixed-exit" does not run the scales from
            ``start_scale`` on. Controls, which are "toprovar" but for the tokens that they keep:
            "random", "inverted" (highest entropy), "oracle" (edges of the dense picture, see
            :func:`toprovar_compiler.policies.oracle.set_maps`).
        start_scale: first scale, counted from 0, that may be pruned. None: with ``keep_ratio``, or without
            a calibration, the last three scales if the model states its schedule, else from the first scale
            of at least 256 tokens.
        keep_ratio: fraction of tokens kept in a pruned block, in (0, 1]; a number, or one per scale (its
            entries before ``start_scale`` have no effect). None: what the model's calibration says, or 0.3;
            then its ``start_scale`` holds too, unless one is given.
        target_speedup: how many times fewer FLOPs the transformer shall take: the mildest plan of the
            model's calibration that reaches it sets ``keep_ratio`` and ``start_scale``.
        scale_threshold: tau in [0, 1]: pruning starts after the first scale, from the one before
            ``start_scale`` on, whose share of tokens with an entropy below the scale's mean (eq. 3) reaches
            tau in every sample. None: at ``start_scale``. Under "fixed-exit" the exit waits for it.
            The policies "fastvar" and "skipvar" have rules of their own instead.
        scale_crossing: how it is reached, "at-least" (section 4) or "at-most" (eq. 13).
        mode: of ``torch.compile``. "reduce-overhead" and "max-autotune" record CUDA graphs, which pays where
            launching kernels takes longer than running them, as with one picture at a time. What a block
            returned is overwritten by the next generation.
        strict: raise where pruning was due but could not be done, instead of counting a fallback.
        calibration: JSON file of the model's calibration, made by ``toprovar calibrate``, for "toprovar" and
            its controls. None: the one that comes with this package for the model, if there is one.
        entropy_source: which entropies rank the tokens of a scale: "calibrated", those of all heads of the
            previous scale, weighted as the calibration says; "online", the same, weighted as the first
            generation teaches, which runs in full; "layer-mean", the mean over layers of the
            previous scale's z-scored maps; "same-layer", that layer's map of the previous scale;
            "last-full-layer", the map of the last layer that ran in full at this scale. None: "calibrated"
            if there is a calibration for the model, else "online".
        restoration: what a pruned token becomes: "scale-exit" (pruned in every layer but Global ones,
            contributes a zero residual code), "bypass" (the residual stream passes through) or
            "cached-update" (gets the layer's update of the previous scale, resized).
        pruned_keys: whether keys and values of pruned tokens are "absent" from the cache or "computed".
        retention: which K tokens of a block are kept, and how many. "rank": the lowest scores of the entropy
            source. "sampled": drawn with probabilities that fall with the score. "literal": those of "rank",
            but K is the sum of eq. 6 as printed, which is (1 - a_min) N less at most one token.
        retention_range: a_min and a_max of eq. 6, 0 <= a_min <= a_max <= 1, which set the budget instead of
            ``keep_ratio``: a scale keeps 1 - (a_min + (a_max - a_min) R s / S) of its tokens. None: under
            "literal" (1 - keep_ratio, 1).
        retention_temperature: of "sampled": near 0 it is "rank", and very large it is random. None: 1.
        tile_floor: (side, share): of each tile of side x side cells of a scale's grid at least this share
            is kept, in (0, 1], and at least one token; the lowest scores of each go first (A.5.3).
        layer_budgets: one number in [0, 1] per layer: 1 = Detail layer, pruned to ``keep_ratio``; 0 = Global
            layer, runs in full (R of eq. 4). With "scale-exit" the codes of tokens that any layer left out
            are zero.
        layer_dimension: which layers are Global and run in full. "off": none, unless ``layer_budgets`` says
            so. "spectrum": those whose entropy map has one dominant singular value at the last scale before
            pruning, in this picture (section 4; :mod:`toprovar_compiler.policies.layer_classes`);
            "centred-spectrum": the same of the map less its mean, not in the paper. For "toprovar" and its
            controls, and not with ``layer_budgets``.
        layer_beta: beta of eq. 4, above 0. None: 0.025, or 1.7 of centred maps.
        layer_band: two numbers in [0, 1], the first not above the second: a layer of R at or below the first
            is Global, at or above the second Detail, and what lies between is ambiguous and runs in full.
        guidance_until: first scale, counted from 0, without guidance: from there on only the conditional
            rows are run, and their results stand for the unconditional rows too, as SkipVAR does late. None:
            as the plan says whose budget is used, if any; "end": it never ends. A model that states no
            schedule shows in a generation how many tokens each scale of the next one is likely to have, so
            that its first one is guided to the end. For "toprovar" and its controls.
        drop_scales: how many of the last scales "fastvar" does not run at all.
        policy_seed: of what "random" keeps, and of what ``retention="sampled"`` draws.
        decisions: JSON file of the decision model of "skipvar", made by
            :mod:`toprovar_compiler.policies.skipvar_fit`. None: the one that comes with this package for the
            model, if there is one.
        guidance_rows: how many batch rows belong to one sample (2 under classifier-free guidance, stacked
            [all conditional rows, all unconditional rows]). None: seen from the residual codes, else 1.
        blocks: dotted name of the module list that holds the repeated blocks. None: found.
    """

    policy: PolicyName = "toprovar"
    start_scale: int | None = None
    keep_ratio: float | Sequence[float] | None = None
    target_speedup: float | None = None
    scale_threshold: float | None = None
    scale_crossing: Crossing = "at-least"
    mode: Mode = DEFAULT_MODE
    strict: bool = False
    calibration: str | None = None
    entropy_source: EntropySourceName | None = None
    restoration: RestorationName = "scale-exit"
    pruned_keys: PrunedKeys = "absent"
    retention: RetentionName = "rank"
    retention_range: Sequence[float] | None = None
    retention_temperature: float | None = None
    tile_floor: Sequence[float] | None = None
    layer_budgets: Sequence[float] | None = None
    layer_dimension: LayerDimension = "off"
    layer_beta: float | None = None
    layer_band: Sequence[float] = DEFAULT_LAYER_BAND
    guidance_until: int | Literal["end"] | None = None
    drop_scales: int = 0
    policy_seed: int = 0
    decisions: str | None = None
    guidance_rows: int | None = None
    blocks: str | None = None

    def __post_init__(self) -> None:
        _check_choice("policy", self.policy, get_args(PolicyName))
        if self.entropy_source is not None:
            _check_choice("entropy_source", self.entropy_source, get_args(EntropySourceName))
        _check_choice("restoration", self.restoration, get_args(RestorationName))
        _check_choice("pruned_keys", self.pruned_keys, get_args(PrunedKeys))
        _check_choice("scale_crossing", self.scale_crossing, get_args(Crossing))
        _check_choice("mode", self.mode, get_args(Mode))
        _check_choice("layer_dimension", self.layer_dimension, get_args(LayerDimension))
        _check_count("start_scale", self.start_scale, least=0)
        _check_count("guidance_rows", self.guidance_rows, least=1)
        check_guidance(self)
        _check_count("drop_scales", self.drop_scales, least=0, optional=False)
        _check_count("policy_seed", self.policy_seed, least=0, optional=False)
        if self.policy == "fixed-exit" and self.start_scale == 0:
            raise OptionError("policy='fixed-exit' requires a start_scale of at least 1, got 0; raise it")
        if not isinstance(self.strict, bool):
            raise OptionError(f"strict requires True or False, got {self.strict!r}")
        if self.blocks is not None and not isinstance(self.blocks, str):
            raise OptionError(f"blocks requires a dotted module name or None, got {self.blocks!r}")
        if self.decisions is not None and not isinstance(self.decisions, str):
            raise OptionError(f"decisions requires the path of a JSON file or None, got {self.decisions!r}")
        if self.calibration is not None and not isinstance(self.calibration, str):
            raise OptionError(
                f"calibration requires the path of a JSON file or None, got {self.calibration!r}"
            )
        self._check_speedup()
        self._check_threshold()
        self._check_ratios()
        self._check_layers()
        _check_choice("retention", self.retention, get_args(RetentionName))
        check_retention(self)

    def _check_speedup(self) -> None:
        for _, speedup in _numbered("target_speedup", self.target_speedup):
            if isinstance(self.target_speedup, Sequence) or speedup < 1:
                raise OptionError(
                    f"target_speedup requires one number of at least 1 or None, got {self.target_speedup!r}"
                )
        if self.target_speedup is not None and self.keep_ratio is not None:
            raise OptionError(
                f"target_speedup={self.target_speedup} requires keep_ratio=None, got {self.keep_ratio!r}: "
                "each of them sets the budget; leave one out"
            )
        if self.target_speedup is not None and self.policy in ("fastvar", "skipvar", "fixed-exit"):
            raise OptionError(
                f"target_speedup requires a policy that has plans, got {self.policy!r}; "
                "set its own options instead, or choose 'toprovar'"
            )

    def _check_threshold(self) -> None:
        for _, tau in _numbered("scale_threshold", self.scale_threshold):
            if isinstance(self.scale_threshold, Sequence) or not 0.0 <= tau <= 1.0:
                raise OptionError(
                    f"scale_threshold requires one number in [0, 1] or None, got {self.scale_threshold!r}"
                )
        if self.scale_threshold is not None and self.policy in ("fastvar", "skipvar"):
            raise OptionError(
                f"scale_threshold requires a policy that waits for it, got {self.policy!r}, which has a rule "
                "of its own; leave it out, or choose 'toprovar'"
            )

    def _check_ratios(self) -> None:
        for position, ratio in _numbered("keep_ratio", self.keep_ratio):
            if not 0.0 < ratio <= 1.0:
                raise OptionError(f"keep_ratio{position} requires a number in (0, 1], got {ratio}")
        if isinstance(self.layer_budgets, Real):
            raise OptionError(f"layer_budgets requires one number per layer, got {self.layer_budgets!r}")
        for position, budget in _numbered("layer_budgets", self.layer_budgets):
            if not 0.0 <= budget <= 1.0:
                raise OptionError(f"layer_budgets{position} requires a number in [0, 1], got {budget}")
        self._check_ranking()

    def _check_ranking(self) -> None:
        one_ranking = self.restoration == "scale-exit" and self.policy != "fastvar"
        if one_ranking and self.entropy_source in ("same-layer", "last-full-layer"):
            raise OptionError(
                "restoration='scale-exit' requires entropy_source='calibrated', 'online' or "
                f"'layer-mean', got {self.entropy_source!r}: "
                "its one ranking per scale is made before the scale's first layer runs"
            )

    def _check_layers(self) -> None:
        for _, beta in _numbered("layer_beta", self.layer_beta):
            if isinstance(self.layer_beta, Sequence) or beta <= 0:
                raise OptionError(f"layer_beta requires one number above 0 or None, got {self.layer_beta!r}")
        band = [number for _, number in _numbered("layer_band", self.layer_band)]
        if len(band) != 2 or not 0.0 <= band[0] <= band[1] <= 1.0:
            raise OptionError(
                f"layer_band requires two numbers in [0, 1], the first not above the second, got "
                f"{self.layer_band!r}"
            )
        if self.layer_dimension == "off":
            return
        if self.layer_budgets is not None:
            raise OptionError(
                f"layer_dimension={self.layer_dimension!r} requires layer_budgets=None, got "
                f"{self.layer_budgets!r}: each of them says which layers are pruned; leave one out"
            )
        if self.policy in ("fastvar", "skipvar", "fixed-exit"):
            raise OptionError(
                f"layer_dimension requires a policy that tells layers apart, got {self.policy!r}; leave it "
                "out, or choose 'toprovar'"
            )

    @property
    def records_cuda_graphs(self) -> bool:
        """Whether ``mode`` is one of those in which Inductor records CUDA graphs."""
        return self.mode in GRAPH_MODES

    @property
    def keep_ratio_of_scales(self) -> Sequence[float] | None:
        """``keep_ratio`` if it has one number per scale."""
        return self.keep_ratio if isinstance(self.keep_ratio, Sequence) else None

    def keep_ratio_at(self, scale: int) -> float:
        """The fraction of tokens kept at a scale that may be pruned.

        Raises:
            OptionError: ``keep_ratio`` has one number per scale, but none for this one.
        """
        if self.keep_ratio is None:
            return DEFAULT_KEEP_RATIO
        if not isinstance(self.keep_ratio, Sequence):
            return float(self.keep_ratio)
        if scale >= len(self.keep_ratio):
            raise OptionError(
                f"keep_ratio requires one number per scale, got {len(self.keep_ratio)} for a model that runs "
                f"scale {scale}; give one number, or one for each scale"
            )
        return float(self.keep_ratio[scale])


def parse_options(given: Mapping[str, Any]) -> Options:
    """Options from keywords.

    Raises:
        OptionError: an unknown name (with the nearest known one), a wrong type, a value out of range.
    """
    known = [field.name for field in fields(Options)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise OptionError(f"unknown option {name!r}; {hint}known options are {', '.join(known)}")
    return Options(**given)
