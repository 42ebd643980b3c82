"""splitwire: cut a trained network in two and send the features between the halves in under one bit per element.

    splitwire.export(model, cut=…, calibration=…)   make front.onnx and back.onnx              [export]
    splitwire.plan(model, device=…, link=…)         compare the cuts, recommend one             [export]
    splitwire.evaluate(folder, data)                accuracy against bytes                     [report]
    splitwire.EdgeSession                           run the front, send frames                 [edge]
    splitwire.CloudSession                          take frames, run the back                  [cloud]
    splitwire.FeatureCodec                          the codec alone: arrays in, bytes out

Names are imported on first use, so that `import splitwire` is instant and an edge install never meets torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from splitwire.codec import telemetry

if TYPE_CHECKING:
    from splitwire.codec.codec import FeatureCodec
    from splitwire.codec.errors import SplitwireError
    from splitwire.codec.profile import CodecProfile, Preprocessing
    from splitwire.evaluation.run import evaluate
    from splitwire.exporter.network.pictures import PictureOptions
    from splitwire.exporting import export
    from splitwire.planning import plan
    from splitwire.runtime_cloud.session import CloudSession
    from splitwire.runtime_edge.session import EdgeSession
    from splitwire.runtime_edge.transport import HttpTransport, LoopbackTransport

telemetry.set_variable()

__version__ = "0.1.0"

_HOME = {
    "CloudSession": "splitwire.runtime_cloud.session",
    "CodecProfile": "splitwire.codec.profile",
    "EdgeSession": "splitwire.runtime_edge.session",
    "FeatureCodec": "splitwire.codec.codec",
    "HttpTransport": "splitwire.runtime_edge.transport",
    "LoopbackTransport": "splitwire.runtime_edge.transport",
    "PictureOptions": "splitwire.exporter.network.pictures",
    "Preprocessing": "splitwire.codec.profile",
    "SplitwireError": "splitwire.codec.errors",
    "evaluate": "splitwire.evaluation.run",
    "export": "splitwire.exporting",
    "plan": "splitwire.planning",
}

__all__ = [
    "CloudSession",
    "CodecProfile",
    "EdgeSession",
    "FeatureCodec",
    "HttpTransport",
    "LoopbackTransport",
    "PictureOptions",
    "Preprocessing",
    "SplitwireError",
    "evaluate",
    "export",
    "plan",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'splitwire' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
