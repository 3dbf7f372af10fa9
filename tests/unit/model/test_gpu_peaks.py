"""Peaks are those of the very device."""

from __future__ import annotations

import pytest

from components.model.gpu_peaks import peak_flops


@pytest.mark.parametrize(
    ("device", "precision", "tf32", "peak"),
    [
        ("NVIDIA H200", "bf16", False, 989.4e12),
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", False, 756e12),
        ("NVIDIA A100-SXM4-80GB", "fp16", False, 312e12),
        ("NVIDIA A100 80GB PCIe", "fp32", True, 156e12),
        ("NVIDIA A100 80GB PCIe", "fp32", False, 19.5e12),
        ("NVIDIA A10G", "bf16", False, 70e12),
        ("NVIDIA A10", "bf16", False, 125e12),
        ("NVIDIA L4", "bf16", False, 121e12),
        ("NVIDIA L40S", "bf16", False, 362e12),
        ("Tesla T4", "fp16", False, 65e12),
        ("Tesla T4", "fp32", True, 8.1e12),
        ("Tesla V100-SXM2-16GB", "fp16", False, 125e12),
        ("Tesla V100-PCIE-32GB", "fp16", False, 112e12),
        ("NVIDIA GeForce RTX 4090", "bf16", False, 165.2e12),
    ],
)
def test_the_peak_of_a_device(device: str, precision: str, tf32: bool, peak: float) -> None:
    assert peak_flops(device, precision, tf32) == pytest.approx(peak)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("Tesla T4", "bf16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA GeForce RTX 4090 D", "bf16"),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16"),
        ("NVIDIA A1000", "bf16"),
        ("Some GPU", "fp32"),
        ("", "fp32"),
    ],
)
def test_nothing_is_made_up_for_other_devices(device: str, precision: str) -> None:
    assert peak_flops(device, precision, tf32=False) is None
