"""splitwire: cut a trained network in two and send the features between the halves in under one bit per element.

    splitwire.export(model, cut=…, calibration=…)   make front.onnx and back.onnx              [export]
    splitwire.plan(model, device=…, link=…)         compare the cuts, recommend one             [export]
    splitwire.evaluate(folder, data)                accuracy against bytes                     [report]
    splitwire.EdgeSession                           run the front, send frames                 [edge]
    splitwire.CloudSession                          take frames, run the back                  [cloud]
    splitwire.FeatureCodec                          the codec alone: arrays in, bytes out

docs/api.md describes every public name, and docs/stability.md says what a version promises of them.

Names are imported on first use, so that `import splitwire` is instant and an edge install never meets torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from splitwire.codec.shared import telemetry

if TYPE_CHECKING:
    from splitwire.codec.codec import DecodedFrame, FeatureCodec
    from splitwire.codec.drift import DriftReference, FrameLength
    from splitwire.codec.drift import Limits as DriftLimits
    from splitwire.codec.errors import (
        AuthRefused,
        BadResponse,
        BitstreamError,
        CircuitOpen,
        ConnectTimeout,
        Corrupt,
        CutNotBounded,
        DeadlineExceeded,
        DeviceError,
        ExportError,
        FeatureError,
        FingerprintMismatch,
        Forbidden,
        LimitExceeded,
        NonFiniteFeatures,
        ProfileError,
        RequestTimeout,
        ServerBusy,
        ShapeMismatch,
        SplitwireError,
        SpoolError,
        SpoolFull,
        TransportError,
        Truncated,
        UnknownModel,
        UnsupportedModel,
        UnsupportedVersion,
        UsageError,
    )
    from splitwire.codec.profile import (
        Clipping,
        CodecProfile,
        OperatingPoint,
        Preprocessing,
        Quantizer,
        SizeSpec,
        TensorPoint,
        TensorSpec,
    )
    from splitwire.codec.shared.device import DeviceProfile
    from splitwire.codec.wire.frame import DecoderLimits
    from splitwire.evaluation.answer.compare import Comparison, compare
    from splitwire.evaluation.answer.results import Estimate, Evaluation, read_results
    from splitwire.evaluation.answer.results import Point as MeasuredPoint
    from splitwire.evaluation.answer.standings import Missed, Standing
    from splitwire.evaluation.data.coco import Truth as DetectionTruth
    from splitwire.evaluation.data.dataset import Dataset
    from splitwire.evaluation.data.dataset import Item as DatasetItem
    from splitwire.evaluation.run import evaluate
    from splitwire.exporter.calibration.inputs import Skipped as SkippedInput
    from splitwire.exporter.cutting.cuts import Cut
    from splitwire.exporter.network.pictures import PictureOptions
    from splitwire.exporter.pair.precision_choice import Comparison as PrecisionComparison
    from splitwire.exporter.pair.precision_choice import Figures as PrecisionFigures
    from splitwire.exporter.pair.result import ExportResult
    from splitwire.exporter.planning.links import Link
    from splitwire.exporter.planning.plan import Latency, Placement, Plan, PlannedCut
    from splitwire.exporter.points.design import QuantizedTensor
    from splitwire.exporter.points.measure import PointMeasure
    from splitwire.exporting import export
    from splitwire.models.catalogue import LoadedModel as LoadedNetwork
    from splitwire.models.catalogue import load as load_network
    from splitwire.planning import PlanResult, plan
    from splitwire.recalibrating import recalibrate
    from splitwire.runtime_cloud.admission import ServerLimits
    from splitwire.runtime_cloud.engines.process import serve
    from splitwire.runtime_cloud.http.app import create_app
    from splitwire.runtime_cloud.oip.options import GrpcOptions
    from splitwire.runtime_cloud.repository.models import Models as ServedPairs
    from splitwire.runtime_cloud.repository.models import load_models as load_pairs
    from splitwire.runtime_cloud.repository.repository import Repository as ModelRepository
    from splitwire.runtime_cloud.repository.repository import RepositoryLimits
    from splitwire.runtime_cloud.security.options import Security
    from splitwire.runtime_cloud.session import CloudResult, CloudSession
    from splitwire.runtime_edge.control.capture import Capture
    from splitwire.runtime_edge.control.capture import Kept as CapturedFile
    from splitwire.runtime_edge.control.drift import DriftMonitor
    from splitwire.runtime_edge.control.rate import LinkState, RateController, Rung
    from splitwire.runtime_edge.device import measure_device
    from splitwire.runtime_edge.events import Event
    from splitwire.runtime_edge.findings import (
        Classes,
        ClassScore,
        Detection,
        Detections,
        Findings,
        Segment,
        Segments,
        Value,
        Values,
    )
    from splitwire.runtime_edge.graph import FrontOutputs
    from splitwire.runtime_edge.results import SplitResult, Timings
    from splitwire.runtime_edge.session import EdgeSession
    from splitwire.runtime_edge.session import State as SessionState
    from splitwire.runtime_edge.sources.base import Captured, Source
    from splitwire.runtime_edge.sources.opening import open_source
    from splitwire.runtime_edge.sources.video import Camera
    from splitwire.runtime_edge.spool.drain import Drain, DrainCounts
    from splitwire.runtime_edge.spool.options import Counts as SpoolCounts
    from splitwire.runtime_edge.spool.options import SpoolStats
    from splitwire.runtime_edge.spool.records import Spooled
    from splitwire.runtime_edge.spool.spool import Spool
    from splitwire.runtime_edge.stream.parts import Look, StreamResult, StreamStats
    from splitwire.runtime_edge.stream.skip.calibrating import SkipTable
    from splitwire.runtime_edge.stream.skip.calibrating import Trial as SkipTrial
    from splitwire.runtime_edge.stream.skip.deciding import Skip
    from splitwire.runtime_edge.stream.skip.sameness import Sameness
    from splitwire.runtime_edge.stream.stream import Stream
    from splitwire.runtime_edge.transport.base import BatchTransport, Key, Reply, Timeouts, Transport
    from splitwire.runtime_edge.transport.credentials import Tls, TokenFile
    from splitwire.runtime_edge.transport.http.transport import HttpTransport
    from splitwire.runtime_edge.transport.loopback import LoopbackTransport
    from splitwire.runtime_edge.transport.oip.grpc import OipGrpcTransport
    from splitwire.runtime_edge.transport.oip.http import OipHttpTransport
    from splitwire.runtime_edge.transport.retry import CircuitBreaker
    from splitwire.runtime_edge.transport.stream.transport import StreamTransport

telemetry.set_variable()

__version__ = "0.1.0"

_HOME = {
    "AuthRefused": "splitwire.codec.errors",
    "BadResponse": "splitwire.codec.errors",
    "BatchTransport": "splitwire.runtime_edge.transport.base",
    "BitstreamError": "splitwire.codec.errors",
    "Camera": "splitwire.runtime_edge.sources.video",
    "Capture": "splitwire.runtime_edge.control.capture",
    "Captured": "splitwire.runtime_edge.sources.base",
    "CapturedFile": "splitwire.runtime_edge.control.capture:Kept",
    "CircuitBreaker": "splitwire.runtime_edge.transport.retry",
    "CircuitOpen": "splitwire.codec.errors",
    "ClassScore": "splitwire.runtime_edge.findings",
    "Classes": "splitwire.runtime_edge.findings",
    "Clipping": "splitwire.codec.profile",
    "CloudResult": "splitwire.runtime_cloud.session",
    "CloudSession": "splitwire.runtime_cloud.session",
    "CodecProfile": "splitwire.codec.profile",
    "Comparison": "splitwire.evaluation.answer.compare",
    "ConnectTimeout": "splitwire.codec.errors",
    "DeadlineExceeded": "splitwire.codec.errors",
    "Corrupt": "splitwire.codec.errors",
    "Cut": "splitwire.exporter.cutting.cuts",
    "CutNotBounded": "splitwire.codec.errors",
    "Dataset": "splitwire.evaluation.data.dataset",
    "DatasetItem": "splitwire.evaluation.data.dataset:Item",
    "DecodedFrame": "splitwire.codec.codec",
    "DecoderLimits": "splitwire.codec.wire.frame",
    "Detection": "splitwire.runtime_edge.findings",
    "DetectionTruth": "splitwire.evaluation.data.coco:Truth",
    "Detections": "splitwire.runtime_edge.findings",
    "DeviceError": "splitwire.codec.errors",
    "DeviceProfile": "splitwire.codec.shared.device",
    "Drain": "splitwire.runtime_edge.spool.drain",
    "DrainCounts": "splitwire.runtime_edge.spool.drain",
    "DriftLimits": "splitwire.codec.drift:Limits",
    "DriftMonitor": "splitwire.runtime_edge.control.drift",
    "DriftReference": "splitwire.codec.drift",
    "EdgeSession": "splitwire.runtime_edge.session",
    "Estimate": "splitwire.evaluation.answer.results",
    "Evaluation": "splitwire.evaluation.answer.results",
    "Event": "splitwire.runtime_edge.events",
    "ExportError": "splitwire.codec.errors",
    "ExportResult": "splitwire.exporter.pair.result",
    "FeatureCodec": "splitwire.codec.codec",
    "FeatureError": "splitwire.codec.errors",
    "Findings": "splitwire.runtime_edge.findings",
    "FingerprintMismatch": "splitwire.codec.errors",
    "Forbidden": "splitwire.codec.errors",
    "FrameLength": "splitwire.codec.drift",
    "FrontOutputs": "splitwire.runtime_edge.graph",
    "GrpcOptions": "splitwire.runtime_cloud.oip.options",
    "HttpTransport": "splitwire.runtime_edge.transport.http.transport",
    "Key": "splitwire.runtime_edge.transport.base",
    "Latency": "splitwire.exporter.planning.plan",
    "LimitExceeded": "splitwire.codec.errors",
    "Link": "splitwire.exporter.planning.links",
    "LinkState": "splitwire.runtime_edge.control.rate",
    "LoadedNetwork": "splitwire.models.catalogue:LoadedModel",
    "Look": "splitwire.runtime_edge.stream.parts",
    "LoopbackTransport": "splitwire.runtime_edge.transport.loopback",
    "MeasuredPoint": "splitwire.evaluation.answer.results:Point",
    "Missed": "splitwire.evaluation.answer.standings",
    "ModelRepository": "splitwire.runtime_cloud.repository.repository:Repository",
    "NonFiniteFeatures": "splitwire.codec.errors",
    "OipGrpcTransport": "splitwire.runtime_edge.transport.oip.grpc",
    "OipHttpTransport": "splitwire.runtime_edge.transport.oip.http",
    "OperatingPoint": "splitwire.codec.profile",
    "PictureOptions": "splitwire.exporter.network.pictures",
    "Placement": "splitwire.exporter.planning.plan",
    "Plan": "splitwire.exporter.planning.plan",
    "PlanResult": "splitwire.planning",
    "PlannedCut": "splitwire.exporter.planning.plan",
    "PointMeasure": "splitwire.exporter.points.measure",
    "PrecisionComparison": "splitwire.exporter.pair.precision_choice:Comparison",
    "PrecisionFigures": "splitwire.exporter.pair.precision_choice:Figures",
    "Preprocessing": "splitwire.codec.profile",
    "ProfileError": "splitwire.codec.errors",
    "QuantizedTensor": "splitwire.exporter.points.design",
    "Quantizer": "splitwire.codec.profile",
    "RateController": "splitwire.runtime_edge.control.rate",
    "Reply": "splitwire.runtime_edge.transport.base",
    "RepositoryLimits": "splitwire.runtime_cloud.repository.repository",
    "RequestTimeout": "splitwire.codec.errors",
    "Rung": "splitwire.runtime_edge.control.rate",
    "Sameness": "splitwire.runtime_edge.stream.skip.sameness",
    "Segment": "splitwire.runtime_edge.findings",
    "Segments": "splitwire.runtime_edge.findings",
    "ServedPairs": "splitwire.runtime_cloud.repository.models:Models",
    "ServerBusy": "splitwire.codec.errors",
    "Security": "splitwire.runtime_cloud.security.options",
    "ServerLimits": "splitwire.runtime_cloud.admission",
    "SessionState": "splitwire.runtime_edge.session:State",
    "ShapeMismatch": "splitwire.codec.errors",
    "SizeSpec": "splitwire.codec.profile",
    "Skip": "splitwire.runtime_edge.stream.skip.deciding",
    "SkipTable": "splitwire.runtime_edge.stream.skip.calibrating",
    "SkipTrial": "splitwire.runtime_edge.stream.skip.calibrating:Trial",
    "SkippedInput": "splitwire.exporter.calibration.inputs:Skipped",
    "Source": "splitwire.runtime_edge.sources.base",
    "SplitResult": "splitwire.runtime_edge.results",
    "SplitwireError": "splitwire.codec.errors",
    "Spool": "splitwire.runtime_edge.spool.spool",
    "SpoolCounts": "splitwire.runtime_edge.spool.options:Counts",
    "SpoolError": "splitwire.codec.errors",
    "SpoolFull": "splitwire.codec.errors",
    "SpoolStats": "splitwire.runtime_edge.spool.options",
    "Spooled": "splitwire.runtime_edge.spool.records",
    "Standing": "splitwire.evaluation.answer.standings",
    "Stream": "splitwire.runtime_edge.stream.stream",
    "StreamResult": "splitwire.runtime_edge.stream.parts",
    "StreamStats": "splitwire.runtime_edge.stream.parts",
    "StreamTransport": "splitwire.runtime_edge.transport.stream.transport",
    "TensorPoint": "splitwire.codec.profile",
    "TensorSpec": "splitwire.codec.profile",
    "Timeouts": "splitwire.runtime_edge.transport.base",
    "Timings": "splitwire.runtime_edge.results",
    "Tls": "splitwire.runtime_edge.transport.credentials",
    "TokenFile": "splitwire.runtime_edge.transport.credentials",
    "Transport": "splitwire.runtime_edge.transport.base",
    "TransportError": "splitwire.codec.errors",
    "Truncated": "splitwire.codec.errors",
    "UnknownModel": "splitwire.codec.errors",
    "UnsupportedModel": "splitwire.codec.errors",
    "UnsupportedVersion": "splitwire.codec.errors",
    "UsageError": "splitwire.codec.errors",
    "Value": "splitwire.runtime_edge.findings",
    "Values": "splitwire.runtime_edge.findings",
    "compare": "splitwire.evaluation.answer.compare",
    "create_app": "splitwire.runtime_cloud.http.app",
    "evaluate": "splitwire.evaluation.run",
    "export": "splitwire.exporting",
    "load_network": "splitwire.models.catalogue:load",
    "load_pairs": "splitwire.runtime_cloud.repository.models:load_models",
    "measure_device": "splitwire.runtime_edge.device",
    "open_source": "splitwire.runtime_edge.sources.opening",
    "plan": "splitwire.planning",
    "read_results": "splitwire.evaluation.answer.results",
    "recalibrate": "splitwire.recalibrating",
    "serve": "splitwire.runtime_cloud.engines.process",
}
"""Public name → module, with ":name" where it is called otherwise there."""

__all__ = [
    "AuthRefused",
    "BadResponse",
    "BatchTransport",
    "BitstreamError",
    "Camera",
    "Capture",
    "Captured",
    "CapturedFile",
    "CircuitBreaker",
    "CircuitOpen",
    "ClassScore",
    "Classes",
    "Clipping",
    "CloudResult",
    "CloudSession",
    "CodecProfile",
    "Comparison",
    "ConnectTimeout",
    "Corrupt",
    "Cut",
    "CutNotBounded",
    "Dataset",
    "DatasetItem",
    "DeadlineExceeded",
    "DecodedFrame",
    "DecoderLimits",
    "Detection",
    "DetectionTruth",
    "Detections",
    "DeviceError",
    "DeviceProfile",
    "Drain",
    "DrainCounts",
    "DriftLimits",
    "DriftMonitor",
    "DriftReference",
    "EdgeSession",
    "Estimate",
    "Evaluation",
    "Event",
    "ExportError",
    "ExportResult",
    "FeatureCodec",
    "FeatureError",
    "Findings",
    "FingerprintMismatch",
    "Forbidden",
    "FrameLength",
    "FrontOutputs",
    "GrpcOptions",
    "HttpTransport",
    "Key",
    "Latency",
    "LimitExceeded",
    "Link",
    "LinkState",
    "LoadedNetwork",
    "Look",
    "LoopbackTransport",
    "MeasuredPoint",
    "Missed",
    "ModelRepository",
    "NonFiniteFeatures",
    "OipGrpcTransport",
    "OipHttpTransport",
    "OperatingPoint",
    "PictureOptions",
    "Placement",
    "Plan",
    "PlanResult",
    "PlannedCut",
    "PointMeasure",
    "PrecisionComparison",
    "PrecisionFigures",
    "Preprocessing",
    "ProfileError",
    "QuantizedTensor",
    "Quantizer",
    "RateController",
    "Reply",
    "RepositoryLimits",
    "RequestTimeout",
    "Rung",
    "Sameness",
    "Security",
    "Segment",
    "Segments",
    "ServedPairs",
    "ServerBusy",
    "ServerLimits",
    "SessionState",
    "ShapeMismatch",
    "SizeSpec",
    "Skip",
    "SkipTable",
    "SkipTrial",
    "SkippedInput",
    "Source",
    "SplitResult",
    "SplitwireError",
    "Spool",
    "SpoolCounts",
    "SpoolError",
    "SpoolFull",
    "SpoolStats",
    "Spooled",
    "Standing",
    "Stream",
    "StreamResult",
    "StreamStats",
    "StreamTransport",
    "TensorPoint",
    "TensorSpec",
    "Timeouts",
    "Timings",
    "Tls",
    "TokenFile",
    "Transport",
    "TransportError",
    "Truncated",
    "UnknownModel",
    "UnsupportedModel",
    "UnsupportedVersion",
    "UsageError",
    "Value",
    "Values",
    "compare",
    "create_app",
    "evaluate",
    "export",
    "load_network",
    "load_pairs",
    "measure_device",
    "open_source",
    "plan",
    "read_results",
    "recalibrate",
    "serve",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        module, _, attribute = _HOME[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)
    raise AttributeError(f"module 'splitwire' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
