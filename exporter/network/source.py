"""Get the network as a checked ONNX graph, from a torch module or from a file.

The batch is dynamic if the network allows it. Height and width are always fixed: swin_t exported with free sizes gives
wrong outputs without an error (docs/exporter.md). So the shape of every tensor is known, apart from the batch.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    InlinePass,
    RemoveInitializersFromInputsPass,
    TopologicalSortPass,
)
from torch.utils import _pytree as pytree

from splitwire.codec.errors import UnsupportedModel, UsageError
from splitwire.exporter.network.adapting.compatibility import make_compatible
from splitwire.exporter.network.adapting.constants import Constants, bake_constants, check_input
from splitwire.exporter.network.adapting.outputs import check_outputs, keep_outputs
from splitwire.exporter.network.adapting.suppression import limit_suppression
from splitwire.exporter.network.adapting.widen import widen

from .inference import Graph, InputType, check_graph, noise
from .mixing import mixes_images, one_by_one
from .modules.calls import Stack, stamp, unstamp
from .modules.passthrough import CallRecord, watching
from .onnx_files import read_onnx
from .pictures import WantedShape
from .quiet import first_line, quiet
from .shapes.declared import ask_types, drop_stale_shapes, forget_shapes, infer_missing
from .shapes.measured import complete_shapes

OPSET = 20
"""The operator set that torch is asked for: the first with Gelu as one operator. Every supported ONNX Runtime (1.20 and
later) runs it. torch may use another one: see `Source.opset`."""

_AXES_OF_PICTURES = 4

_PRIVATE_METADATA = ("pkg.torch.onnx.stack_trace",)
"""Metadata with file paths of the exporting machine. The edge does not need them and must not see them."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The whole network as a checked ONNX graph with one image input.

    model: the graph, with the types and shapes that inference knows. Later steps must clone it before a change.
    origin: "dynamo" or "legacy" (torch's exporters), or "onnx" (a file).
    input_shape: of one image's input: (1, C, H, W), (1, H, W, C), or (1, …) for other inputs.
    batch: None if the batch is dynamic, otherwise the only batch size that the graph takes.
    modules: module path → class name; empty for a file.
    record: how these modules ran (modules/passthrough.py); empty for a file.
    stamped: the module calls around the graph's nodes, if the exporter knew them (modules/calls.py).
    notes: what the user should know.
    """

    model: ir.Model
    origin: str
    input_shape: tuple[int, ...]
    batch: int | None
    modules: Mapping[str, str] = field(default_factory=dict)
    record: CallRecord = field(default_factory=CallRecord)
    stamped: Mapping[ir.Node, Stack] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return int(self.model.opset_imports.get("", 0))

    @property
    def input_dtype(self) -> InputType:
        """The element type of the input."""
        return input_dtype(self.graph)


def input_dtype(graph: ir.Graph) -> InputType:
    """The element type of the graph's input."""
    return "uint8" if graph.inputs[0].dtype == ir.DataType.UINT8 else "float32"


def from_module(
    module: torch.nn.Module,
    example: tuple[int, ...] | torch.Tensor,
    dtype: InputType = "float32",
    outputs: Sequence[str] | None = None,
) -> Source:
    """Export a module to ONNX in evaluation mode, with a dynamic batch. The training flags are restored afterwards.

    module: float32, one tensor in. It returns a tensor, or tensors in tuples, lists, dicts and data classes.
    torchvision's detectors, which take a list of images, are exported for one image (detectors.py).
    The graph shares the module's weights: do not change them while the graph is in use.
    example: the shape (1, C, H, W) of inputs of `dtype`, where the first number is ignored; or an input tensor (N, …).
    outputs: the names of the outputs to keep; None keeps all.
    Raises UsageError if the module does not take this input, UnsupportedModel if it cannot be exported.
    """
    single = _one_input(example, dtype)
    device = _check_module(module)
    network, followable = module, cast("AbstractContextManager[None]", nullcontext())
    detects = is_torchvision_detector(module)
    if detects:
        from splitwire.exporter.network.adapting import detectors

        network, followable = detectors.as_network(module), detectors.exportable()
    with evaluating(module), quiet(), torch.no_grad(), followable:
        # Batch 2 first: torch.export treats 0 and 1 specially. Batch 1 is for networks with a fixed batch.
        for batch in (1,) if detects else (2, 1):
            inputs = torch.cat([single] * batch).to(device)
            try:
                with watching(module) as record:
                    result = network(inputs)
            except Exception as e:  # the user's code may raise anything
                if batch == 1:
                    shape = tuple(single.shape)
                    raise UsageError(f"the network does not take an input of shape {shape}: {first_line(e)}") from e
                continue
            if plain(result) is not result:
                network = _with_plain_outputs(network)
                result = plain(result)
            if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result)):
                raise UnsupportedModel(f"forward() returns {type(result).__name__} without a tensor in it")
            model, origin = _export(network, inputs, dynamic=batch > 1)
            _name_outputs(model, result)
            # The TorchScript exporter writes sizes of the example into the graph without a warning.
            if batch == 1 or not (_is_fixed(model) or (origin == "legacy" and not _runs_at(model, single.shape, 1))):
                break
    if detects:
        limit_suppression(model.graph)
    keep_outputs(model, outputs)
    for node in model.graph.all_nodes():
        for key in _PRIVATE_METADATA:
            node.metadata_props.pop(key, None)
    model.graph.metadata_props.clear()  # torch's signature of the whole program is wrong for a half
    paths = {path: type(m).__name__ for path, m in module.named_modules() if path}
    notes = detectors.notes(module, (int(single.shape[2]), int(single.shape[3]))) if detects else []
    return replace(_source(model, origin, tuple(single.shape), paths, notes), record=record)


def from_file(
    path: Path,
    input_shape: WantedShape = None,
    constants: Constants | None = None,
    outputs: Sequence[str] | None = None,
) -> Source:
    """Read and check an ONNX file (onnx_files.py).

    input_shape: (1, C, H, W), or a function that gives it from the declared sizes (pictures.py). It is needed only if
    the file leaves the image size open; otherwise it must agree with the file. constants: values of the other inputs
    (constants.py). outputs: the names of the outputs to keep; None keeps all.
    Raises UsageError (no such file, not ONNX, size missing or contradictory, a constant that does not fit),
    UnsupportedModel (invalid model, or an output that no reply can carry).
    """
    file = read_onnx(path)
    keep_outputs(file.model, outputs, file.foreign)
    if reason := check_graph(file.model):
        if "ir_version" in reason:
            raise UsageError(f"{path}: not an ONNX file ({reason})")
        raise UnsupportedModel(f"{path}: not a valid ONNX model: {reason}")
    return _source(file.model, "onnx", input_shape, {}, [], constants or {})


def is_torchvision_detector(module: torch.nn.Module) -> bool:
    """Whether the module is one of torchvision's detectors. Does not import torchvision, which is slow."""
    if "torchvision.models.detection" not in sys.modules:
        return False
    from splitwire.exporter.network.adapting.detectors import DETECTORS

    return isinstance(module, DETECTORS)


def _one_input(example: tuple[int, ...] | torch.Tensor, dtype: InputType) -> torch.Tensor:
    """One input of the network, (1, …), from a shape or an example tensor."""
    if isinstance(example, torch.Tensor):
        if example.dtype not in (torch.float32, torch.uint8) or example.dim() < 2 or not example.numel():
            raise UsageError(
                f"the example must be a float32 or uint8 tensor (N, …); it is {example.dtype} of shape"
                f" {tuple(example.shape)}"
            )
        return example[:1].detach()
    shape = tuple(example)
    if not all(isinstance(n, int) for n in shape):
        raise UsageError(f"the example must be one tensor or a shape (1, C, H, W); it holds {type(shape[0]).__name__}s")
    if len(shape) < 2 or any(n < 1 for n in shape):
        raise UsageError(f"input_shape must be (1, C, H, W) with positive sizes, is {shape}")
    chance = torch.Generator().manual_seed(0)
    if dtype == "uint8":
        return torch.randint(0, 256, (1, *shape[1:]), generator=chance, dtype=torch.uint8)
    return torch.randn(1, *shape[1:], generator=chance)


def _check_module(module: torch.nn.Module) -> torch.device:
    """The module's device. Raises UnsupportedModel if it cannot be exported: the export itself may take minutes."""
    weights = [*module.parameters(), *module.buffers()]
    odd = {w.dtype for w in weights if w.is_floating_point()} - {torch.float32}
    if odd:
        raise UnsupportedModel(f"the module holds {', '.join(map(str, odd))} weights; call module.float() first")
    devices = {w.device for w in weights} or {torch.device("cpu")}
    if len(devices) > 1 or torch.device("meta") in devices:
        where = ", ".join(sorted(map(str, devices)))
        raise UnsupportedModel(f"the module's weights are on {where}; move them to one device: module.to('cpu')")
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return devices.pop()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in kinds]
    needed += [p.name for p in parameters if p.default is p.empty and p.kind == p.KEYWORD_ONLY]
    if len(needed) != 1 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        takes = ", ".join(needed) or "none"
        raise UnsupportedModel(
            f"the network must take one tensor; forward() takes {len(needed)}: {takes}. Wrap it in a module that makes"
            " the others"
        )
    return devices.pop()


def _source(
    model: ir.Model,
    origin: str,
    wanted: WantedShape,
    modules: Mapping[str, str],
    notes: list[str],
    constants: Constants | None = None,
) -> Source:
    """Normalise the graph (inlined, sorted, typed, float32, compatible), and determine its input and its batch."""
    for normalise in (InlinePass(), RemoveInitializersFromInputsPass(), TopologicalSortPass()):
        model = normalise(model).model
    graph = model.graph
    bake_constants(model, constants or {})
    if widened := widen(model):
        notes.append(widened)
    if len(graph.inputs) == 1 and graph.inputs[0].shape is None:  # not even the number of axes is declared
        graph.inputs[0].shape = ir.Shape([None] * (len(wanted) if isinstance(wanted, tuple) else _AXES_OF_PICTURES))
    check_input(graph)
    entry = graph.inputs[0]
    dims = list(entry.shape or ())
    if len(dims) < 2:
        raise UnsupportedModel(f"the input {entry.name!r} has no batch axis: its shape is {entry.shape}")
    sizes = tuple(d if isinstance(d, int) else None for d in dims[1:])
    wanted = wanted(sizes) if callable(wanted) else wanted
    if wanted is not None and not _fits(sizes, wanted[1:]):
        raise UsageError(f"the network takes inputs of shape {_shape_text(dims)}, not {wanted}")
    if None in sizes:
        if wanted is None:
            raise UsageError(
                f"the network takes inputs of any size, {_shape_text(dims)}; say which: --image-size or input_shape="
            )
        sizes = wanted[1:]
        _fix_input(graph, (dims[0], *sizes))
    shape = (1, *(int(s) for s in sizes if s is not None))
    if origin == "onnx":
        drop_stale_shapes(model)
    infer_missing(model)
    restamped = make_compatible(model)
    ask_types(model)
    check_outputs(graph)
    complete_shapes(model, shape)
    batch = dims[0] if isinstance(dims[0], int) else None
    mixed = False
    if batch is None:
        apart = _follows_batch(graph) or _runs_at(model, shape, 3)
        mixed = apart and mixes_images(model, shape, input_dtype(graph))
        # Otherwise the declared batch is wrong: the graph contains a fixed size, or images influence each other.
        batch = None if apart and not mixed else 1
    if batch == 1 and not isinstance(dims[0], int):
        _fix_input(graph, (1, *sizes))
        infer_missing(model)
        complete_shapes(model, shape)
    if mixed:
        notes.append(
            "the images of a batch influence each other in this network (batch norm in training mode, or scaling by"
            " what the whole batch holds), so that it runs them one by one"
        )
    if batch is not None:
        notes.append(
            f"the batch is fixed at {batch} in this network: the server cannot run several requests at once, and frames"
            " of another batch are refused"
        )
    if batch is not None and batch > 1:
        notes.append(one_by_one(graph, batch))
    if restamped:
        notes.append(restamped)
    if origin == "legacy":
        notes.append("torch's new exporter could not take the network; its TorchScript exporter was used")
    return Source(
        model=model,
        origin=origin,
        input_shape=shape,
        batch=batch,
        modules=modules,
        stamped=unstamp(model),
        notes=tuple(notes),
    )


def _fix_input(graph: ir.Graph, shape: tuple[Any, ...]) -> None:
    """Set the shape of the input, and remove the shapes that were inferred from the old one."""
    graph.inputs[0].shape = ir.Shape(shape)
    forget_shapes(graph)


def _follows_batch(graph: ir.Graph) -> bool:
    """Whether the first declared axis of every output is the batch of the input."""
    first = [v.shape[0] if v.shape else None for v in (*graph.inputs, *graph.outputs)]
    return None not in first and all(d == first[0] for d in first)


def _runs_at(model: ir.Model, shape: Sequence[int], batch: int) -> bool:
    """Whether the graph runs at this batch size, and every output has this size in its first axis."""
    x = noise((batch, *shape[1:]), input_dtype(model.graph), np.random.default_rng(0))
    graph = Graph.of(model, what="network")
    try:
        return all(o.ndim and len(o) == batch for o in graph.run(x))
    except UnsupportedModel:
        return False


def _is_fixed(model: ir.Model) -> bool:
    """Whether the exporter made a graph with a fixed batch size."""
    shape = model.graph.inputs[0].shape
    return shape is not None and isinstance(shape[0], int)


def _export(module: torch.nn.Module, example: torch.Tensor, *, dynamic: bool) -> tuple[ir.Model, str]:
    """Export with the dynamo exporter; if it fails, with the TorchScript exporter. Returns the model and the origin."""
    try:
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
            input_names=["input"],
            opset_version=OPSET,
            verbose=False,
        )
        if program is not None:
            if program.exported_program is not None:
                stamp(program.model, program.exported_program)
            return program.model, "dynamo"
        first: Exception = RuntimeError("torch.onnx.export returned nothing")
    except Exception as e:  # torch.export raises dozens of kinds, and few of them are public
        first = e
    try:
        buffer = io.BytesIO()
        torch.onnx.export(
            module,
            (example,),
            buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes a file object
            dynamo=False,
            dynamic_axes={"input": {0: "batch"}} if dynamic else None,
            input_names=["input"],
            opset_version=OPSET,
            verbose=False,
        )
        return ir.from_proto(onnx.load_from_string(buffer.getvalue())), "legacy"
    except Exception as e:
        raise UnsupportedModel(
            f"torch cannot export this network to ONNX: {first_line(first)}; its TorchScript exporter: {first_line(e)}"
        ) from first


def _name_outputs(model: ir.Model, result: Any) -> None:
    """Give the outputs stable names: the names that torch gives (`linear`, `add_561`) change from export to export."""
    outputs = list(model.graph.outputs)
    leaves = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(result)[0] if isinstance(leaf, torch.Tensor)]
    if len(leaves) != len(outputs):
        return
    taken = {v.name for v in ir.convenience.create_value_mapping(model.graph).values()}
    for (path, _), value in zip(leaves, outputs, strict=True):
        name = "_".join(["output", *(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)])
        if isinstance(result, dict) and len(path) == 1:
            name = str(getattr(path[0], "key", name))
        if name not in taken and outputs.count(value) == 1 and value.producer() is not None:
            value.name = name


def plain(result: Any) -> Any:
    """The result of a forward, with data classes replaced by dicts of their fields, as torch.export needs it."""
    if dataclasses.is_dataclass(result) and not isinstance(result, (type, dict)):
        return {f.name: plain(getattr(result, f.name)) for f in dataclasses.fields(result)}
    return result


def _with_plain_outputs(module: torch.nn.Module) -> torch.nn.Module:
    """The module with `plain` after its forward. It shares the state, and is the root, so that module paths stay."""
    kind = type(module)
    view: torch.nn.Module = object.__new__(
        type(kind.__name__, (kind,), {"forward": lambda self, x: plain(kind.forward(self, x))})
    )
    view.__dict__ = module.__dict__
    return view


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards the flag of every submodule is restored."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in flags:
            m.training = training


def _fits(sizes: tuple[int | None, ...], wanted: tuple[int, ...]) -> bool:
    return len(sizes) == len(wanted) and all(s in (None, w) for s, w in zip(sizes, wanted, strict=True))


def _shape_text(dims: list[Any]) -> str:
    return "(" + ", ".join(str(d if isinstance(d, int) else (d.value or "?")) for d in dims) + ")"
