"""Booleans that a device computes are told once, when they are there, and nobody waits for them."""

from __future__ import annotations

import pytest
import torch

from toprovar_compiler.policies.late_flag import LateFlag


@pytest.mark.parametrize(
    ("held", "failed"), [([], False), ([True], False), ([False], True), ([True, False, True], True)]
)
def test_one_that_did_not_hold_is_told_once(held: list[bool], failed: bool) -> None:
    flag = LateFlag()
    for value in held:
        flag.add(torch.tensor(value))
    assert flag.failed() is failed
    assert flag.failed() is False


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for() -> None:
    flag = LateFlag()
    holds = torch.tensor([1.0, torch.nan], device="cuda").isfinite().all()
    torch.cuda.synchronize()
    torch.cuda._sleep(1 << 30)  # cycles: half a second
    flag.add(holds)
    assert not flag.failed(), "it was told before the device had come so far"
    torch.cuda.synchronize()
    assert flag.failed()
