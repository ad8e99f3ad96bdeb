"""The ceiling of every ranking: tokens are kept where the dense picture of the same seed has edges.

Never a product: it needs the picture that it is to paint. For measurements only.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Decision, Step
from toprovar_compiler.policies.calibration import Calibration
from toprovar_compiler.policies.edges import sobel_magnitude
from toprovar_compiler.policies.entropy_source import BaseSource, EntropySource
from toprovar_compiler.policies.toprovar import ToprovarPolicy
from toprovar_compiler.schedule import grid_of

_REMEDY = "call toprovar_compiler.policies.oracle.set_maps(model, edge_maps(dense_pictures)) first"


class OraclePolicy(ToprovarPolicy):
    """Keeps the tokens with the strongest edges in the maps of :func:`set_maps`; all else is toprovar."""

    name = "oracle"

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self.maps = _Maps()
        super().__init__(options, schedule)

    def make_source(self, calibration: Calibration | None) -> EntropySource:
        return self.maps

    def decide(self, step: Step, stream: Tensor) -> Decision:
        if self.maps.strength is not None:
            self.maps.strength = self.maps.strength.to(stream.device)
        return super().decide(step, stream)


def edge_maps(pictures: Tensor) -> Tensor:
    """Edge strength of pictures: the Sobel gradient's magnitude of the mean over colours.

    pictures ``[B, 3, H, W]`` floating, of any range -> ``[B, H, W]``, at least float32. Raises nothing.
    """
    return sobel_magnitude(pictures.mean(1, keepdim=True))[:, 0]


def set_maps(model: nn.Module, maps: Tensor | None) -> None:
    """Give the edge strengths of the pictures that ``model`` paints next.

    All its generations use them until others are given, so give those of each batch before it is painted.

    Args:
        model: compiled with ``policy="oracle"``.
        maps: ``[samples, H, W]`` of the dense pictures of the same prompts and seeds, in the order of the
            batch (see :func:`edge_maps`); a token's strength is the mean over its cell. None takes the maps
            back.

    Raises:
        OptionError: the model has another policy, or ``maps`` has another shape.
        UnsupportedModelError: the model is not compiled.
    """
    # The registry, which knows the model's session, imports the policies.
    from toprovar_compiler.api import policy_of

    policy = policy_of(model)
    if not isinstance(policy, OraclePolicy):
        raise OptionError(
            f"set_maps requires a model compiled with policy='oracle', got policy={policy.name!r}; "
            "compile it with that policy"
        )
    if maps is not None and (maps.dim() != 3 or not maps.is_floating_point()):
        raise OptionError(
            f"set_maps requires floating-point maps [samples, H, W], got {maps.dtype} {tuple(maps.shape)}; "
            "make them with edge_maps(dense_pictures)"
        )
    policy.maps.strength = maps


class _Maps(BaseSource):
    """Ranks by edge strength, the strongest first."""

    reads_entropy = False
    missing: str | None = "policy 'oracle' requires square token grids"

    def __init__(self) -> None:
        self.strength: Tensor | None = None

    def start_generation(self) -> None:
        if self.strength is None:
            raise OptionError(f"policy 'oracle' requires maps of the dense pictures, got none; {_REMEDY}")

    def scores(self, step: Step) -> Tensor | None:
        strength, grid = self.strength, grid_of(step.tokens)
        if strength is None or len(strength) != step.samples:
            got = "none" if strength is None else f"{len(strength)}"
            raise OptionError(
                f"policy 'oracle' requires a map for each of {step.samples} samples, got {got}; {_REMEDY}"
            )
        return None if grid is None else -adaptive_avg_pool2d(strength, grid).flatten(1)
