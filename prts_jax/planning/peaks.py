"""Peak FLOP/s of accelerators, for MFU and for the days of a plan.

Source: the vendors' data sheets (Cloud TPU documentation, "TPU versions"; NVIDIA); bfloat16, dense.
"""

PEAK_FLOPS_PER_CHIP = {
    "v2": 45e12,
    "v3": 123e12,
    "v4": 275e12,
    "v5litepod": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
}
"""TPU generation, as gcloud names it → FLOP/s of a chip."""

PEAK_FLOPS_PER_DEVICE = {
    # A device is one of a chip's two cores here, a chip from v4 on.
    "TPU v2": PEAK_FLOPS_PER_CHIP["v2"] / 2,
    "TPU v3": PEAK_FLOPS_PER_CHIP["v3"] / 2,
    "TPU v4": PEAK_FLOPS_PER_CHIP["v4"],
    "TPU v5 lite": PEAK_FLOPS_PER_CHIP["v5litepod"],
    "TPU v5p": PEAK_FLOPS_PER_CHIP["v5p"],
    "TPU v5": PEAK_FLOPS_PER_CHIP["v5p"],
    "TPU v6 lite": PEAK_FLOPS_PER_CHIP["v6e"],
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Prefix of a `jax.Device`'s `device_kind` → FLOP/s of that device."""
