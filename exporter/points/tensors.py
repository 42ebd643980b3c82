"""The tensors at the cut, with all that the design of quantizers needs: shape, statistics and prediction taps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from splitwire.codec.design import FeatureStatistics, worthwhile_taps
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import TensorSpec
from splitwire.codec.shared.progress import ProgressFn
from splitwire.codec.tables import Taps


@dataclass(frozen=True, kw_only=True)
class CalibratedTensor:
    """One tensor at the cut.

    slope: of the (leaky) ReLU that computes the tensor; None if unknown. taps: of the predictive coder; None selects
    the context coder.
    """

    spec: TensorSpec
    statistics: FeatureStatistics
    slope: float | None
    taps: Taps | None = None


def specs_of(tensors: Sequence[CalibratedTensor]) -> list[TensorSpec]:
    """The shapes of the tensors."""
    return [tensor.spec for tensor in tensors]


def with_taps(tensors: Sequence[CalibratedTensor], report: ProgressFn) -> list[CalibratedTensor]:
    """The same tensors with taps of the predictive coder, if it saves enough bytes for its time.

    Raises ExportError for a tensor that never changes.
    """
    predicted = []
    for done, tensor in enumerate(tensors):
        report("Choose what predicts what", done, len(tensors))
        try:
            taps = worthwhile_taps(tensor.statistics, tensor.slope)
        except ExportError as e:
            raise ExportError(f"tensor {tensor.spec.name!r}: {e}") from e
        predicted.append(replace(tensor, taps=taps))
    report("Choose what predicts what", len(tensors), len(tensors))
    return predicted
