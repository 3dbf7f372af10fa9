"""Peak FLOP/s of GPUs with dense matrices, from their makers' datasheets."""

from __future__ import annotations

import re
from typing import NamedTuple


class Peak(NamedTuple):
    """Peak TFLOP/s of a device with dense matrices and float32 accumulation; None if it lacks the dtype."""

    bf16: float | None
    fp16: float | None
    tf32: float | None
    fp32: float


# By the words of the device's name, the more specific names first. Peaks with sparsity, twice as high, do not apply to
# training.
_PEAKS: tuple[tuple[frozenset[str], Peak], ...] = tuple(
    (frozenset(name.split()), Peak(*peaks))
    for name, peaks in (
        # NVIDIA Blackwell architecture datasheet (HGX B200), halved from sparse.
        ("B200", (2250.0, 2250.0, 1125.0, 75.0)),
        # NVIDIA H100 and H200 Tensor Core GPU datasheets, halved from sparse; GH200 Grace Hopper datasheet.
        ("H100 PCIE", (756.0, 756.0, 378.0, 51.0)),
        ("H100 NVL", (835.0, 835.0, 417.5, 60.0)),
        ("H100", (989.4, 989.4, 494.7, 67.0)),
        ("H200 NVL", (835.5, 835.5, 417.5, 60.0)),
        ("H200", (989.4, 989.4, 494.7, 67.0)),
        ("GH200", (989.4, 989.4, 494.7, 67.0)),
        # NVIDIA A100, A30, A40, A10 and A10G (Amazon EC2 G5) datasheets.
        ("A100", (312.0, 312.0, 156.0, 19.5)),
        ("A30", (165.0, 165.0, 82.0, 10.3)),
        ("A40", (149.7, 149.7, 74.8, 37.4)),
        ("A10G", (70.0, 70.0, 35.0, 35.0)),
        ("A10", (125.0, 125.0, 62.5, 31.2)),
        # NVIDIA L40S, L40 and L4 datasheets, halved if only the sparse peak is given.
        ("L40S", (362.0, 362.0, 183.0, 91.6)),
        ("L40", (181.0, 181.0, 90.5, 90.5)),
        ("L4", (121.0, 121.0, 60.0, 30.3)),
        # NVIDIA T4 and V100 datasheets: neither has bfloat16 or TF32.
        ("T4", (None, 65.0, None, 8.1)),
        ("V100 PCIE", (None, 112.0, None, 14.0)),
        ("V100S", (None, 130.0, None, 16.4)),
        ("V100", (None, 125.0, None, 15.7)),
        # NVIDIA RTX Blackwell, Ada and Ampere GA102 architecture whitepapers, appendices, with FP32 accumulate.
        ("RTX 5090", (209.5, 209.5, 104.8, 104.8)),
        ("RTX 4090", (165.2, 165.2, 82.6, 82.6)),
        ("RTX 4080", (97.5, 97.5, 48.7, 48.7)),
        ("RTX 3090", (71.0, 71.0, 35.6, 35.6)),
        ("RTX 6000 ADA", (364.2, 364.2, 182.1, 91.1)),
        ("RTX A6000", (154.8, 154.8, 77.4, 38.7)),
        # AMD Instinct MI300X datasheet; the others' "TF32" is its own.
        ("INSTINCT MI300X", (1307.4, 1307.4, 653.7, 163.4)),
    )
)
# Words of the names of parts of a device, and of slower devices that share its name.
_OTHERS = frozenset({"MIG", "LAPTOP", "MAX", "MOBILE", "D", "TI", "SUPER"})


def peak_flops(device: str, precision: str, tf32: bool) -> float | None:
    """Return the peak FLOP/s of a device; None if the device is not in the table.

    Args:
        device: Its name, as ``torch.cuda.get_device_name`` gives it.
        precision: The precision of training: ``fp32``, ``bf16`` or ``fp16``.
        tf32: Whether float32 products may be computed as TF32.
    """
    words = frozenset(re.split(r"[\s-]+", device.upper()))
    peak = next((peak for name, peak in _PEAKS if name <= words), None)
    if peak is None or words & _OTHERS:
        return None
    by_precision = {"bf16": peak.bf16, "fp16": peak.fp16, "fp32": peak.tf32 if tf32 and peak.tf32 else peak.fp32}
    tflops = by_precision[precision]
    return None if tflops is None else tflops * 1e12
