"""The rates of known devices, to which what is measured is compared; none is guessed."""

from typing import Any, NamedTuple


class Peak(NamedTuple):
    """What the maker states for one device."""

    flops: float  # bfloat16, dense, per second
    memory: float  # bytes per second


# By `device_kind`, as jax tells it. NVIDIA's data sheets "H100" and "H200" (SXM: 989 TFLOP/s
# without sparsity; 3.35 and 4.8 TB/s) and "A100" (SXM: 312 TFLOP/s; 1,555 GB/s with 40 GB, 2,039
# with 80). Google Cloud's pages "TPU v4" (275 TFLOP/s, 1,200 GB/s), "TPU v5e" (197, 819) and
# "TPU v5p" (459, 2,765).
_V5P = Peak(459e12, 2765e9)
PEAKS = {
    "NVIDIA H200": Peak(989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 2.039e12),
    "TPU v4": Peak(275e12, 1.2e12),
    "TPU v5 lite": Peak(197e12, 819e9),
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
}


def peak_of(kind: str) -> Peak | None:
    """The rates of a device, or None if its kind is not in the table."""
    return PEAKS.get(kind)


def share(rate: float, peak: float | None) -> float | None:
    """A rate as a share of the peak; None where the peak is not known."""
    return None if peak is None else rate / peak


def described(device: Any) -> dict[str, Any]:
    """A device by name, with the rates that its maker states."""
    peak = peak_of(device.device_kind)
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "platform_version": device.client.platform_version.splitlines()[0],
        "peak_flops": None if peak is None else peak.flops,
        "peak_memory": None if peak is None else peak.memory,
    }
