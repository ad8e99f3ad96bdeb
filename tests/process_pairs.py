"""Two processes that share a run, started as torchrun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(worker: str, rank: int, port: int, *arguments: str) -> subprocess.Popen[str]:
    """Rank 0 or 1 of two: the module ``worker`` with what torchrun would set."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", worker, *arguments],
        cwd=ROOT,
        env={**os.environ, **place, **address},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
