"""The device profiles of splitwire: estimates from data sheets. `splitwire edge profile` measures your own device.

One cautious rule holds for all of them (docs/plan.md compares it with measured times):
    convolutions and matrix products  25 % of the float32 peak of all cores: clock × multiply–accumulates per cycle
    depthwise convolutions            a quarter of that on a CPU, a tenth on a GPU
    weights and feature maps          a third of the memory's bandwidth
    overhead per node                 1 µs on an x86 core, longer by clock and width on ARM; a kernel launch on a GPU
    codec, JPEG                       half of what one x86 core of 2024 did with this code; a third of that for a
                                      Cortex-A76 or A78, a sixth for a Cortex-A72
The power, where known, comes from measurements of others or from the maker's power mode; docs/plan.md names the
sources.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.device import DeviceProfile

DENSE_SHARE = 0.25
MEMORY_SHARE = 1 / 3


def _estimate(
    name: str,
    note: str,
    *,
    peak: float,
    memory: float,
    overhead_us: float,
    depthwise: float = 0.25,
    codec: float = 1.0,
    watts: float | None = None,
) -> DeviceProfile:
    """A profile from data sheet figures.

    peak: multiply–accumulates per second. memory: bytes per second. depthwise: rate relative to other convolutions.
    codec: speed relative to an x86 core; the figures below are half of those measured on such a core.
    """
    return DeviceProfile(
        name=name,
        source="estimate",
        conv_macs=DENSE_SHARE * peak,
        matmul_macs=DENSE_SHARE * peak,
        depthwise_macs=DENSE_SHARE * depthwise * peak,
        elementwise_bytes=MEMORY_SHARE * memory,
        weight_bytes=MEMORY_SHARE * memory,
        node_overhead_us=overhead_us,
        encode_elements=codec * 300e6,
        decode_elements=codec * 400e6,
        jpeg_encode_pixels=codec * 200e6,
        jpeg_decode_pixels=codec * 150e6,
        compute_watts=watts,
        note=note,
    )


ESTIMATES = {
    profile.name: profile
    for profile in (
        _estimate(
            "raspberry-pi-4", "4 Cortex-A72 at 1.5 GHz, 4 per cycle; LPDDR4-3200, 32 bit",
            peak=4 * 1.5e9 * 4, memory=12.8e9, overhead_us=6, codec=1 / 6, watts=5.4,
        ),
        _estimate(
            "raspberry-pi-5", "4 Cortex-A76 at 2.4 GHz, 8 per cycle; LPDDR4X-4267, 32 bit",
            peak=4 * 2.4e9 * 8, memory=17.1e9, overhead_us=3, codec=1 / 3,
        ),
        _estimate(
            "jetson-orin-nano", "GPU, 1024 cores at 625 MHz, float32; LPDDR5, 128 bit; power mode of 15 W",
            peak=1024 * 0.625e9, memory=68e9, overhead_us=15, depthwise=0.1, codec=1 / 3, watts=15.0,
        ),
        _estimate(
            "x86-core", "one core at 3 GHz with AVX2, 16 per cycle; 2 channels of DDR4-3200",
            peak=3e9 * 16, memory=51.2e9, overhead_us=1,
        ),
        _estimate(
            "server-cpu", "16 cores at 2.5 GHz with AVX2, 16 per cycle; 8 channels of DDR4-3200",
            peak=16 * 2.5e9 * 16, memory=204.8e9, overhead_us=2,
        ),
        _estimate(
            "server-gpu", "NVIDIA T4: 2560 cores at 1.59 GHz, float32; GDDR6",
            peak=2560 * 1.59e9, memory=320e9, overhead_us=10, depthwise=0.1,
        ),
    )
}  # fmt: skip
"""Name → profile."""


def find_device(device: str | os.PathLike[str] | DeviceProfile) -> DeviceProfile:
    """The profile itself, the built-in estimate of this name, or the profile in this file.

    Raises UsageError: unknown name (the message lists the known ones), missing or damaged file.
    """
    if isinstance(device, DeviceProfile):
        return device
    text = os.fspath(device)
    if text in ESTIMATES:
        return ESTIMATES[text]
    if text.lower().endswith(".json") or os.sep in text or "/" in text or Path(text).is_file():
        return DeviceProfile.load(Path(text))
    near = difflib.get_close_matches(text.lower(), ESTIMATES, n=1, cutoff=0.5)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise UsageError(
        f"unknown device {text!r}{meant}; there are estimates for {', '.join(ESTIMATES)}; or pass a file that"
        " `splitwire edge profile --out FILE.json` has measured"
    )
