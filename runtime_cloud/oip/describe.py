"""Metadata and configuration of a model and of the server, as the protocol has them in JSON."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from splitwire.codec.wire.oip.tensors import BYTES, DATATYPES
from splitwire.runtime_cloud.session import CloudSession

from .inference import frame_input

PLATFORM = "splitwire"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)

Spec = tuple[str, str, list[int]]
"""(name, datatype, shape with the batch; -1 for any length)"""


def own_version() -> str:
    """The version of splitwire, for the server's metadata."""
    try:
        return version("splitwire")
    except PackageNotFoundError:  # the sources, not installed
        return "0"


def server_metadata(running: str) -> dict[str, Any]:
    """What GET /v2 answers. running: the version of splitwire."""
    return {"name": "splitwire", "version": running, "extensions": list(EXTENSIONS)}


def inputs_of(session: CloudSession) -> list[Spec]:
    """The inputs: frames; or else all that follow, which cross the cut."""
    batch = -1 if session.batch is None else session.batch
    profile = session.profile
    return [
        (frame_input(session), BYTES, [-1]),
        *((t.name, "FP32", [batch, *t.shape]) for t in profile.tensors),
        *((s.name, "INT64", [s.length]) for s in profile.size_specs),
    ]


def outputs_of(session: CloudSession) -> list[Spec]:
    """The outputs, as back.onnx declares them."""
    return [(o.name, DATATYPES[o.dtype], list(o.shape)) for o in session.output_specs]


def model_metadata(session: CloudSession, name: str, versions: list[str]) -> dict[str, Any]:
    """What GET /v2/models/NAME answers. `parameters` has what the protocol has no field for."""
    profile = session.profile
    return {
        "name": name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [{"name": n, "datatype": t, "shape": s} for n, t, s in inputs_of(session)],
        "outputs": [{"name": n, "datatype": t, "shape": s} for n, t, s in outputs_of(session)],
        "parameters": {"fingerprint": session.pair, "model": profile.model, "cut": profile.cut},
    }


def model_config(session: CloudSession, name: str) -> dict[str, Any]:
    """What GET /v2/models/NAME/config answers. Every input is optional: a request has frames or the tensors."""
    profile = session.profile
    strings = {"fingerprint": session.pair, "model": profile.model, "cut": profile.cut}
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": 0,  # shapes are written with the batch
        "input": [
            {"name": n, "data_type": _config_type(t), "dims": s, "optional": True} for n, t, s in inputs_of(session)
        ],
        "output": [{"name": n, "data_type": _config_type(t), "dims": s} for n, t, s in outputs_of(session)],
        "parameters": {key: {"string_value": value} for key, value in strings.items()},
    }


def _config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}"
