"""``toprovar`` as a process of its own, without Inductor's code generation, which takes minutes here.

    python -m tests.calibration.worker [--die-after N] calibrate ...

With ``--die-after`` the process of rank 1 is killed, by a signal that no program can handle, after N parts.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from tests.conftest import THREADS
from toprovar_compiler import variants
from toprovar_compiler.calibration.parts import Parts
from toprovar_compiler.cli import main

DOOMED_RANK = "1"


def die_after(parts: int) -> None:
    left = parts
    write = Parts.write

    def write_or_die(store: Parts, *rest: Any) -> None:
        nonlocal left
        if os.environ["RANK"] == DOOMED_RANK:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        write(store, *rest)

    Parts.write = write_or_die


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "--die-after":
        die_after(int(arguments[1]))
        del arguments[:2]
    variants.compile_fx = lambda gm, inputs, config_patches: gm.forward
    torch.set_num_threads(THREADS)
    sys.exit(main(arguments))
