"""Get the network as an ONNX graph: from a torch module, or from a file.

Dynamic batch wherever the network allows it; height and width always fixed (swin_t exported with free sizes is
silently wrong, docs/exporter.md), so everything after this knows the shape of every image's tensor.
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

from .calls import Stack, stamp, unstamp
from .declared import ask_types, drop_stale_shapes, forget_shapes, infer_missing
from .inference import Graph, InputType, check_graph, noise
from .mixing import mixes_images, one_by_one
from .onnx_files import read_onnx
from .passthrough import Seen, watching
from .pictures import WantedShape
from .quiet import quiet
from .shapes import complete_shapes

OPSET = 20
"""Asked of torch: the first with Gelu as one operator; every ONNX Runtime we support (1.20 and later) runs it.
It is a wish: read `Source.opset` for what came."""

_AXES_OF_PICTURES = 4

_PRIVATE_METADATA = ("pkg.torch.onnx.stack_trace",)
"""File paths of the exporting machine: of no use to the edge, and nobody's business there."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The whole network as a checked ONNX graph with one image input.

    model: the graph; every value typed as far as shape inference reaches. Not to be changed: steps clone it.
    origin: where it came from: "dynamo" or "legacy" (torch's exporters), or "onnx" (a file).
    input_shape: (1, C, H, W), (1, H, W, C), or (1, …) for other inputs: one image's input.
    batch: None if the batch is dynamic, else the only batch size that the graph takes.
    modules: module path → class name, where a torch module was given; ends the search for layers without nodes.
    seen: how these modules ran: tells calls apart, and finds those without nodes that return what they are given.
    stamped: the calls of modules around the graph's nodes, where the exporter knew them (calls.py).
    notes: what the user should know.
    """

    model: ir.Model
    origin: str
    input_shape: tuple[int, ...]
    batch: int | None
    modules: Mapping[str, str] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)
    stamped: Mapping[ir.Node, Stack] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.model.opset_imports.get("", 0))

    @property
    def input_dtype(self) -> InputType:
        """What the input holds."""
        return input_dtype(self.graph)


def input_dtype(graph: ir.Graph) -> InputType:
    """What the graph's input holds: float32, or uint8."""
    return "uint8" if graph.inputs[0].dtype == ir.DataType.UINT8 else "float32"


def from_module(
    module: torch.nn.Module,
    example: tuple[int, ...] | torch.Tensor,
    dtype: InputType = "float32",
    outputs: Sequence[str] | None = None,
) -> Source:
    """Export a module to ONNX in evaluation mode, with a dynamic batch; its training flags are put back after.

    module: float32, one tensor in; what it returns is a tensor, or tensors in tuples, lists, dicts and data classes.
    torchvision's detectors, which take a list of images, are exported for one image (detectors.py).
    The graph shares the module's weights: do not change them while it is in use.
    example: (1, C, H, W), the first number is ignored, of inputs of `dtype`; or an input tensor (N, …) of it.
    outputs: the names of those to keep; None: all.
    Raises UsageError if the module does not take this input, UnsupportedModel if it cannot be exported.
    """
    one = _one_input(example, dtype)
    device = _check_module(module)
    network, followable = module, cast("AbstractContextManager[None]", nullcontext())
    detects = is_torchvision_detector(module)
    if detects:
        from splitwire.exporter.network.adapting import detectors

        network, followable = detectors.as_network(module), detectors.exportable()
    with evaluating(module), quiet(), torch.no_grad(), followable:
        # Batch 2 first: torch.export treats 0 and 1 as special. Batch 1 is for networks that fix the batch.
        for batch in (1,) if detects else (2, 1):
            inputs = torch.cat([one] * batch).to(device)
            try:
                with watching(module) as seen:
                    result = network(inputs)
            except Exception as e:  # anything: it is the user's code
                if batch == 1:
                    shape = tuple(one.shape)
                    raise UsageError(f"the network does not take an input of shape {shape}: {_line(e)}") from e
                continue
            if plain(result) is not result:
                network = _with_plain_outputs(network)
                result = plain(result)
            if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result)):
                raise UnsupportedModel(f"forward() returns {type(result).__name__} without a tensor in it")
            model, origin = _export(network, inputs, dynamic=batch > 1)
            _name_outputs(model, result)
            # The TorchScript exporter writes sizes of the example into the graph without a word.
            if batch == 1 or not (_is_fixed(model) or (origin == "legacy" and not _runs_at(model, one.shape, 1))):
                break
    if detects:
        limit_suppression(model.graph)
    keep_outputs(model, outputs)
    for node in model.graph.all_nodes():
        for key in _PRIVATE_METADATA:
            node.metadata_props.pop(key, None)
    model.graph.metadata_props.clear()  # torch's signature of the whole program: wrong for a half
    paths = {path: type(m).__name__ for path, m in module.named_modules() if path}
    notes = detectors.notes(module, (int(one.shape[2]), int(one.shape[3]))) if detects else []
    return replace(_source(model, origin, tuple(one.shape), paths, notes), seen=seen)


def from_file(
    path: Path,
    input_shape: WantedShape = None,
    constants: Constants | None = None,
    outputs: Sequence[str] | None = None,
) -> Source:
    """Read and check an ONNX file (onnx_files.py).

    input_shape: (1, C, H, W), or what tells it from the sizes that the file declares (pictures.py); needed only if it
    leaves the image size open, and must agree with it otherwise. constants: values of the other inputs (constants.py).
    outputs: the names of those to keep; None: all.
    Raises UsageError (no such file, not ONNX, size missing or in conflict, a constant that does not fit),
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
    """Whether the module is one of torchvision's detectors. It is not imported for that: slow."""
    if "torchvision.models.detection" not in sys.modules:
        return False
    from splitwire.exporter.network.adapting.detectors import DETECTORS

    return isinstance(module, DETECTORS)


def _one_input(example: tuple[int, ...] | torch.Tensor, dtype: InputType) -> torch.Tensor:
    """One input of the network, (1, …)."""
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
    """The module's device. Raises UnsupportedModel for what cannot be exported, before minutes are spent on it."""
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
    """Normalise the graph (functions inlined, sorted, typed, float32, for our runtimes) and read off its input."""
    for normalise in (InlinePass(), RemoveInitializersFromInputsPass(), TopologicalSortPass()):
        model = normalise(model).model
    graph = model.graph
    bake_constants(model, constants or {})
    if widened := widen(model):
        notes.append(widened)
    if len(graph.inputs) == 1 and graph.inputs[0].shape is None:  # nothing is said, not even how many axes
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
        # Otherwise what the graph declares is not what it does: a size is written into it, or its outputs mix images.
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
    """Give the input another shape; what was inferred from the old one is stale."""
    graph.inputs[0].shape = ir.Shape(shape)
    forget_shapes(graph)


def _follows_batch(graph: ir.Graph) -> bool:
    """Whether every output is declared with the input's batch axis first."""
    first = [v.shape[0] if v.shape else None for v in (*graph.inputs, *graph.outputs)]
    return None not in first and all(d == first[0] for d in first)


def _runs_at(model: ir.Model, shape: Sequence[int], batch: int) -> bool:
    """Whether the graph runs at this batch size and every output has it as its first axis."""
    x = noise((batch, *shape[1:]), input_dtype(model.graph), np.random.default_rng(0))
    graph = Graph.of(model, what="network")
    try:
        return all(o.ndim and len(o) == batch for o in graph.run(x))
    except UnsupportedModel:
        return False


def _is_fixed(model: ir.Model) -> bool:
    """Whether the exporter found that the network takes one batch size only."""
    shape = model.graph.inputs[0].shape
    return shape is not None and isinstance(shape[0], int)


def _export(module: torch.nn.Module, example: torch.Tensor, *, dynamic: bool) -> tuple[ir.Model, str]:
    """The dynamo exporter, and the TorchScript exporter for what that cannot take."""
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
    except Exception as e:  # torch.export raises dozens of kinds, few of them public
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
            f"torch cannot export this network to ONNX: {_line(first)}; its TorchScript exporter: {_line(e)}"
        ) from first


def _name_outputs(model: ir.Model, result: Any) -> None:
    """Give the graph's outputs names that stay: torch's own (`linear`, `add_561`) change from export to export."""
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
    """The result of a forward with data classes as dicts of their fields, which torch.export needs."""
    if dataclasses.is_dataclass(result) and not isinstance(result, (type, dict)):
        return {f.name: plain(getattr(result, f.name)) for f in dataclasses.fields(result)}
    return result


def _with_plain_outputs(module: torch.nn.Module) -> torch.nn.Module:
    """The module, sharing its state, with `plain` after its forward; as the root, so that module paths stay."""
    kind = type(module)
    view: torch.nn.Module = object.__new__(
        type(kind.__name__, (kind,), {"forward": lambda self, x: plain(kind.forward(self, x))})
    )
    view.__dict__ = module.__dict__
    return view


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own flag back afterwards."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in flags:
            m.training = training


def _line(error: BaseException) -> str:
    """The first telling line of a foreign error, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _fits(sizes: tuple[int | None, ...], wanted: tuple[int, ...]) -> bool:
    return len(sizes) == len(wanted) and all(s in (None, w) for s, w in zip(sizes, wanted, strict=True))


def _shape_text(dims: list[Any]) -> str:
    return "(" + ", ".join(str(d if isinstance(d, int) else (d.value or "?")) for d in dims) + ")"
