"""toprovar_compiler: a ``torch.compile`` backend that prunes settled tokens of VAR-style image generators.

import toprovar_compiler
model = toprovar_compiler.compile(model, keep_ratio=0.3)     # or torch.compile(model, backend="toprovar")
images = model.generate(...)
print(toprovar_compiler.summary(model))
"""

from __future__ import annotations

from toprovar_compiler import errors
from toprovar_compiler.api import compile, kept_tokens, reset, restore, summary
from toprovar_compiler.options import Options
from toprovar_compiler.summary import Summary

__version__ = "0.1.0"

__all__ = ["Options", "Summary", "compile", "errors", "kept_tokens", "reset", "restore", "summary"]
