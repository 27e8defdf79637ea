"""Peak FLOP/s of devices, for MFU: bfloat16, dense."""

from prts_jax.launch.accelerators import GENERATIONS

PEAK_FLOPS_PER_DEVICE = {
    kind: generation.peak_flops / generation.devices_per_chip
    for generation in GENERATIONS.values()
    for kind in generation.device_kinds
} | {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Prefix of a `jax.Device`'s `device_kind` → FLOP/s of that device. Source: the vendors' data
sheets."""
