"""The processes that share a run, as ``torchrun`` starts them; one process where it does not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from toprovar_compiler.errors import EvaluationError, OptionError

Item = TypeVar("Item")

# Shards are uneven, and the first to finish waits for the last.
_LONGEST_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process's place among them."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Processes:
        """Reads what ``torchrun`` sets.

        Raises:
            OptionError: the variables are no such numbers.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if names[1] not in variables:
            return cls()
        given = [variables.get(name, "") for name in names]
        if not all(text.isdigit() for text in given) or not int(given[0]) < int(given[1]):
            shown = ", ".join(f"{name}={text!r}" for name, text in zip(names, given, strict=True))
            raise OptionError(f"requires the variables of torchrun, got {shown}; start it with torchrun")
        return cls(*(int(text) for text in given))

    def device(self, name: str) -> str:
        """The device for ``--device name``: of several processes on GPUs, each has one.

        Raises:
            OptionError: one GPU was named for all processes.
        """
        if self.count == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return name
        if name not in ("auto", "cuda"):
            raise OptionError(
                f"--device requires auto, cpu or cuda where torchrun starts {self.count} processes, got "
                f"{name!r}; each process takes the GPU of its local rank"
            )
        return f"cuda:{self.local_rank}"

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part, dealt in turn."""
        return list(items[self.rank :: self.count])

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Inside, :meth:`wait` works: gloo on a CPU, NCCL on GPUs."""
        if self.count == 1:
            yield
            return
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo", timeout=_LONGEST_WAIT, device_id=device if on_gpu else None
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            EvaluationError: one of them has ended.
        """
        if self.count == 1:
            return
        try:
            distributed.barrier()
        except RuntimeError as error:
            raise EvaluationError(
                f"requires all {self.count} processes to finish, but one ended early; what is finished is "
                "kept: run the same command again, with any number of processes"
            ) from error
