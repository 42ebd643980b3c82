"""The doctor: looks at a device and its server, and says of each thing whether it is well, and what to do if not.

    checks.py     a check's result, and the report
    places.py     where the facts are: /proc, /sys, programs
    system.py     processor, system, C library, disk, SQLite
    power.py      undervoltage, throttling, temperature, power mode
    children.py   runs probe.py in child processes and survives their death
    probe.py      what a child does: ONNX Runtime, the golden vectors, the speed of front and codec
    native.py     what the children found, as checks
    speed.py      frames per second at each operating point
    server.py     the server: address, TLS, token, pair, clock
    examine.py    all checks, in order

This package does not import NumPy, Numba or ONNX Runtime, except in probe.py: a wheel that does not fit the processor
ends the process that imports it.
"""

from .checks import Check, Prediction, Report
from .examine import Questions, examine

__all__ = ["Check", "Prediction", "Questions", "Report", "examine"]
