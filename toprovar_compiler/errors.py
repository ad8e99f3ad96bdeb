"""Every error that this package raises on purpose.

Each message says what was found, what was expected and what to do about it
("requires X, got Y; do Z"). All of them derive from :class:`ToprovarError`, and from
the builtin that a caller who knows nothing of toprovar would catch.
"""

from __future__ import annotations


class ToprovarError(Exception):
    """Base class of every deliberate error of this package."""


class OptionError(ToprovarError, ValueError):
    """An option has an unknown name, a wrong type or a value outside its range."""


class UnsupportedModelError(ToprovarError, RuntimeError):
    """The model has nothing that toprovar can compile (no repeated attention block, ...)."""


class UnsupportedGraphError(ToprovarError, RuntimeError):
    """A captured graph cannot be rewritten; raised to users only under ``strict=True``."""


class NoAttentionError(UnsupportedGraphError):
    """A captured graph holds no attention at all: glue code, of which every program has some."""


class GraphVerificationError(ToprovarError, RuntimeError):
    """A pass left a graph that breaks an invariant: a defect of this package, never of the model."""


class KernelInputError(ToprovarError, ValueError):
    """An op was called with tensors of a wrong rank, shape, dtype or device."""


class KernelUnavailableError(ToprovarError, RuntimeError):
    """An implementation that was asked for by name cannot run here."""


class GradientNotSupportedError(ToprovarError, RuntimeError):
    """A gradient was asked of an inference-only op."""


class ArtifactError(ToprovarError, RuntimeError):
    """A file (weights, calibration, results) is missing, damaged or foreign."""


class EvaluationError(ToprovarError, RuntimeError):
    """An evaluation cannot go on; what it finished is kept."""


class MissingDependencyError(ToprovarError, ImportError):
    """A command needs a package that this one does not require."""
