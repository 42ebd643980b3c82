"""What strangers may read of an error."""

from __future__ import annotations

from splitwire.codec.errors import DeviceError, ExportError, SplitwireError
from splitwire.codec.wire.reply import printable

FAILURE = "the server failed on this request; its log says how"


def public_text(error: SplitwireError) -> str:
    """The text of an error for its sender, in one line.

    An error of this machine can name files and libraries: the sender reads only that there was one.
    """
    if isinstance(error, DeviceError | ExportError) or type(error) is SplitwireError:
        return FAILURE
    return printable(str(error))
