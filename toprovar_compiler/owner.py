"""What the parts around a model's blocks know of the compilation that runs."""

from __future__ import annotations

from typing import Protocol

from toprovar_compiler.session import Session


class Owner(Protocol):
    """Has the session that is in charge, if any."""

    session: Session | None
