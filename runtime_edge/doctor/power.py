"""Undervoltage, throttling, temperature and power mode: what makes a device slow without an error."""

from __future__ import annotations

from collections.abc import Iterator

from .checks import Check, Verdict
from .places import Places

BITS = {0: "undervoltage", 1: "the frequency is capped", 2: "throttled", 3: "the soft temperature limit is active"}
"""Bits of `vcgencmd get_throttled` that hold now; those 16 higher hold since the last start."""
SINCE_START = 16
SUPPLY = "use the maker's power supply (Pi 5: 27 W, Pi 4: 15 W) and a short cable; unplug USB devices"
COOLING = "give it a heat sink or a fan, and air"
HOT, TOO_HOT = 80.0, 95.0
"""Degrees Celsius. A Raspberry Pi slows down from 80 on, a Jetson from about 95 on."""
CAPPED = 0.95
"""Share of the highest frequency below which a limit is reported."""


def check_power(places: Places) -> Iterator[Check]:
    """The checks of the part "power"."""
    yield _throttled(places)
    yield _temperature(places)
    yield _frequency(places)
    yield _mode(places)


def _throttled(places: Places) -> Check:
    """Of a Raspberry Pi, by the firmware's tool, else by the kernel's files."""
    said = places.says("vcgencmd", "get_throttled")
    value = None
    if said is not None:
        try:
            value = int(said.rpartition("=")[2], 0)
        except ValueError:
            value = None
    if value is None:
        value = places.integer("/sys/devices/platform/soc/soc:firmware/get_throttled")
    if value is None:
        alarms = [path.removesuffix("name") for path in places.find("/sys/class/hwmon/*/name")]
        volts = [path for path in alarms if places.read(f"{path}name") == "rpi_volt"]
        if not volts:
            return Check(part="power", name="throttling", verdict="skipped", text="no firmware here that tells it")
        value = int(any(places.integer(f"{path}in0_lcrit_alarm") == 1 for path in volts))
    now = [words for bit, words in BITS.items() if value >> bit & 1]
    before = [words for bit, words in BITS.items() if value >> bit + SINCE_START & 1]
    data: dict[str, str | int | float | bool] = {"get_throttled": f"{value:#x}"}
    if not now and not before:
        return Check(part="power", name="throttling", verdict="ok", text="not throttled since the start", data=data)
    supply = any("undervoltage" in words for words in (*now, *before))
    text = "; ".join([f"now: {', '.join(now)}"] * bool(now) + [f"since the start: {', '.join(before)}"] * bool(before))
    return Check(
        part="power", name="throttling", verdict="warning", text=text, remedy=SUPPLY if supply else COOLING, data=data
    )


def _temperature(places: Places) -> Check:
    zones = {}
    for path in places.find("/sys/class/thermal/thermal_zone*/temp"):
        thousandths = places.integer(path)
        if thousandths is not None:
            zones[places.read(path.removesuffix("temp") + "type") or path] = thousandths / 1e3
    if not zones:
        return Check(part="power", name="temperature", verdict="skipped", text="no sensor that the kernel shows")
    zone, degrees = max(zones.items(), key=lambda pair: pair[1])
    verdict: Verdict = "failed" if degrees >= TOO_HOT else "warning" if degrees >= HOT else "ok"
    return Check(
        part="power", name="temperature", verdict=verdict, text=f"{degrees:.0f} °C at most ({zone})",
        remedy="" if verdict == "ok" else COOLING, data={"celsius": degrees, "zone": zone},
    )  # fmt: skip


def _frequency(places: Places) -> Check:
    """A frequency below the processor's own, set by a person, a battery profile or the kernel's thermal driver."""
    limits = []
    for path in places.find("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq"):
        allowed, possible = places.integer(path), places.integer(path.replace("scaling_max", "cpuinfo_max"))
        if allowed and possible:
            limits.append((allowed / possible, allowed, possible, path))
    if not limits:
        return Check(part="power", name="frequency", verdict="skipped", text="the kernel does not show frequencies")
    share, allowed, possible, path = min(limits)
    governor = places.read(path.replace("scaling_max_freq", "scaling_governor")) or "unknown"
    text = f"up to {allowed / 1e6:.1f} of {possible / 1e6:.1f} GHz, governor {governor}"
    if share < CAPPED:
        return Check(
            part="power", name="frequency", verdict="warning", text=text,
            remedy="cool the device, or raise scaling_max_freq (sudo cpupower frequency-set --max …)",
        )  # fmt: skip
    if governor == "powersave":
        return Check(
            part="power", name="frequency", verdict="note", text=text,
            remedy="with some drivers `powersave` means the lowest frequency: sudo cpupower frequency-set -g schedutil",
        )  # fmt: skip
    return Check(part="power", name="frequency", verdict="ok", text=text)


def _mode(places: Places) -> Check:
    """The power mode of a Jetson."""
    said = places.says("nvpmodel", "-q")
    lines = [line.partition(":")[2].strip() for line in (said or "").splitlines() if "Power Mode" in line]
    if not lines:
        return Check(part="power", name="power mode", verdict="skipped", text="not a Jetson")
    if lines[0].upper().startswith("MAXN"):
        return Check(part="power", name="power mode", verdict="ok", text=lines[0])
    return Check(
        part="power", name="power mode", verdict="note", text=f"{lines[0]}: not the fastest mode",
        remedy="sudo nvpmodel -m 0 (the fastest on most Jetsons), if supply and cooling allow it",
    )  # fmt: skip
