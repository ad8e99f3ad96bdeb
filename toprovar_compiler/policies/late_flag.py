"""Booleans that a device computes, read when it has."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class LateFlag:
    """Whether something held, each time that it was looked at.

    To read a boolean of a GPU is to wait for all that was launched before it, and a host that waits launches
    nothing. So values are copied as the device gets there, and :meth:`failed` speaks of those that arrived.
    """

    def __init__(self) -> None:
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def add(self, holds: Tensor) -> None:
        """``holds``: a boolean [] on any device."""
        if not holds.is_cuda:
            self._sent.append((holds, None))
            return
        arriving = holds.to("cpu", non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(holds.device))
        self._sent.append((arriving, arrived))

    def failed(self) -> bool:
        """Whether one was False, of those that have arrived since the last call."""
        found = []
        while self._sent and (self._sent[0][1] is None or self._sent[0][1].query()):
            found.append(bool(self._sent.popleft()[0]))
        return not all(found)
