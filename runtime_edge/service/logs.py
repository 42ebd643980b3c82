"""The log of a service on standard error: lines for people, or JSON for a collector."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

import msgspec

from splitwire.codec.wire.reply import printable

ROOT = "splitwire"
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""Attributes of every log record; any other came with `extra=` and is a field of the line."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message, fields of `extra=`, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in STANDARD and isinstance(v, str | int | float)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """time level message key=value …; control characters of a message are escaped, so that a line stays a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{k}={v}" for k, v in vars(record).items() if k not in STANDARD and isinstance(v, str | int | float)]
        parts = (_utc(record.created), f"{record.levelname.lower():7}", record.getMessage(), *fields)
        line = printable(" ".join(parts))
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def set_up_logs(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send splitwire's log to `stream` (None: standard error). Replaces what an earlier call set up.

    level: debug, info, warning or error. form: text or json.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logger = logging.getLogger(ROOT)
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _utc(created: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created))
    return f"{whole}.{int(created % 1 * 1000):03d}Z"
