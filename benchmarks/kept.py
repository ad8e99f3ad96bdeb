"""What a long benchmark has finished, so that it goes on where it was broken off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """JSON values by name, one line each in a file; delete it after a change of what is measured."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._found: dict[str, Any] = dict(json.loads(line) for line in lines)

    def get(self, name: list[Any], make: Callable[[], Any]) -> Any:
        """The value of that name, which must say all that the value depends on; made if it is not there."""
        key = json.dumps(name, sort_keys=True)
        if key not in self._found:
            made = json.dumps([key, make()])
            with self._path.open("a", encoding="utf-8") as file:
                file.write(made + "\n")
            self._found[key] = json.loads(made)[1]
        return self._found[key]
