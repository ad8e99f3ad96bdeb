"""A progress bar on a terminal; elsewhere (a log, a pipe) one plain line per step."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """Counts steps; use it as a context manager and call :meth:`step` as each one begins.

    Args:
        total: how many steps there will be.
        stream: standard error if not given.
        show: False for a process that works beside another, whose progress is shown.
    """

    def __init__(self, total: int, stream: TextIO | None = None, show: bool = True) -> None:
        self.total, self.show = total, show
        self.begun = 0
        self.stream = stream or sys.stderr
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.show and self.stream.isatty():
            self._bar = _make_bar(self.total, self.stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(kind is None)
            self._bar.close()

    def step(self, label: str) -> None:
        """The step before is done; the next one, ``label``, begins."""
        if self._bar is not None:
            self._bar.update(self.begun > 0)
            self._bar.set_description(label)
        elif self.show:
            print(
                f"[{self.begun + 1:>{len(str(self.total))}}/{self.total}] {label}",
                file=self.stream,
                flush=True,
            )
        self.begun += 1


def _make_bar(total: int, stream: TextIO) -> Any:
    """A tqdm bar, or None where tqdm, an extra, is not installed: plain lines do as well."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, file=stream, dynamic_ncols=True, unit="picture")
