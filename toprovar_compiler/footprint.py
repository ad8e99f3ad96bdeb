"""Which memory a tensor is, without keeping it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Footprint(NamedTuple):
    """The memory of a tensor that is not kept alive by it.

    Attributes:
        storage: tells whether that memory has been given back, to be another tensor's next.
    """

    storage: StorageWeakRef
    data_ptr: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Any) -> Footprint | None:
        if not isinstance(value, Tensor):
            return None
        storage = StorageWeakRef(value.untyped_storage())
        return cls(storage, value.data_ptr(), value.shape, value.stride(), value.dtype)

    def is_of(self, tensor: Tensor, *, first_rows: bool = False) -> bool:
        """Whether ``tensor`` is that memory seen in the same way, or the first rows of it."""
        if tensor.data_ptr() != self.data_ptr or tensor.dtype != self.dtype or tensor.stride() != self.stride:
            return False
        same = tensor.shape == self.shape
        if first_rows and tensor.dim() and not same:
            same = tensor.shape[1:] == self.shape[1:] and len(tensor) < self.shape[0]
        return same and not self.storage.expired()
