"""``toprovar`` as a process of its own, without Inductor's code generation, which takes minutes here.

    python -m tests.evaluation.worker [--die-after N] evaluate ...

With ``--die-after`` the process of rank 1 is killed, by a signal that no program can handle, after N batches.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from toprovar_compiler import demo_contenders, variants
from toprovar_compiler.cli import main
from toprovar_compiler.evaluation.store import TRUE_SCENES, Store
from toprovar_compiler.policies import toprovar

DOOMED_RANK = "1"


def die_after(batches: int) -> None:
    left = batches
    write = Store.write_unit

    def write_or_die(store: Store, name: str, *rest: Any) -> None:
        nonlocal left
        if name != TRUE_SCENES and os.environ["RANK"] == DOOMED_RANK:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        write(store, name, *rest)

    Store.write_unit = write_or_die


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "--die-after":
        die_after(int(arguments[1]))
        del arguments[:2]
    variants.compile_fx = lambda gm, inputs, config_patches: gm.forward
    demo_contenders.PLAIN_BACKEND = "eager"
    toprovar.UNCALIBRATED = "layer-mean"  # as tests/conftest.py has it
    sys.exit(main(arguments))
