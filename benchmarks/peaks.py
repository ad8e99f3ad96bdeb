"""The peaks of known GPUs, by the name that CUDA gives them."""

from __future__ import annotations

# bfloat16 matrix products without sparsity, accumulated in float32, TFLOP/s, from NVIDIA's data sheets. These
# hold at the boost clock; a card under load may keep a lower one.
DENSE_BF16_TFLOPS: dict[str, float] = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
}


def peak_tflops(device_name: str) -> float | None:
    """Dense bfloat16 TFLOP/s of a device; None where it is unknown."""
    return DENSE_BF16_TFLOPS.get(device_name)
