"""`splitwire.recalibrate`: an exported pair and new data → the same graphs with a new codec."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitwire.codec.shared.progress import ProgressFn
    from splitwire.exporter.calibration.items import Calibration
    from splitwire.exporter.pair.result import ExportResult

__all__ = ["recalibrate"]


def recalibrate(
    pair: str | os.PathLike[str],
    *,
    calibration: Calibration,
    out: str | os.PathLike[str] | None = None,
    images: int | None = None,
    progress: ProgressFn | None = None,
) -> ExportResult:
    """Calibrate the codec of an exported pair again on other data, without exporting the network.

    pair: the folder of front.onnx and back.onnx. They are all that is needed.
    calibration: as for `splitwire.export`, in the preprocessing of the pair; or a folder of features that
        `splitwire edge capture --what features` has collected.
    out: the folder for the new pair. None: it replaces the old one.
    images: the largest number of inputs that are used, evenly spread; None: 512.
    progress: called as progress(stage, done, total); total is None while it is unknown.

    The graphs stay, with the matrices of a transform. New are clipping ranges, quantizers and tables of a scalar pair;
    classes, tables and steps of a transform pair; the measures of all operating points, which keep their names; the
    default; and the limits of drift. The fingerprint is new: both ends need the new files.
    Returns an ExportResult. Raises UsageError, ProfileError, FingerprintMismatch, NonFiniteFeatures, ExportError. After
    an error, the pair is unchanged.
    """
    from splitwire.exporter.calibration.inputs import LIMIT
    from splitwire.exporter.recalibrate import recalibrate_pair

    return recalibrate_pair(
        pair, calibration=calibration, out=out, images=LIMIT if images is None else images, progress=progress
    )
