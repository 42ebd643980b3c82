"""Keep the outputs that the caller names, and check that a reply can carry them (codec/wire/reply.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from splitwire.codec.errors import UnsupportedModel, UsageError
from splitwire.codec.wire.reply import DTYPES, MAX_DIMS, MAX_NAME, MAX_OUTPUTS
from splitwire.exporter.network.inference import Array

_SHOWN = 8
"""Largest number of names in a message."""


def split_names(text: str, known: Callable[[str], bool]) -> list[str]:
    """The names in `text`, which commas separate. A known name may contain commas: the longest one is taken."""
    parts = text.split(",")
    names: list[str] = []
    start = 0
    while start < len(parts):
        ends = range(len(parts), start, -1)
        end = next((e for e in ends if known(",".join(parts[start:e]).strip())), start + 1)
        names.append(",".join(parts[start:end]).strip())
        start = end
    return names


def keep_outputs(model: ir.Model, kept: str | Sequence[str] | None, foreign: Mapping[str, str] | None = None) -> None:
    """Remove all outputs but the named ones, and check that a reply can carry these.

    The order stays that of the network, and each output stays once. kept: names; a text may have several names with
    commas between them; None keeps all. foreign: output → its type in words, for types that onnx_ir does not have.
    Raises UsageError for a name that is no output, UnsupportedModel for an output that no reply can carry.
    """
    graph = model.graph
    outputs = list(dict.fromkeys(graph.outputs))
    names = [str(v.name) for v in outputs]
    if kept is not None:
        texts = [kept] if isinstance(kept, str) else list(kept)
        wanted = [name for text in texts for name in split_names(text, names.__contains__)]
        if not all(wanted) or not wanted:
            wrong = "holds an empty name" if wanted else "is empty"
            raise UsageError(f"--outputs (outputs=) {wrong}; the network has {_listed(names)}")
        for name in wanted:
            if name not in names:
                raise UsageError(f"the network has no output {name!r}; it has {_listed(names)}")
        outputs = [v for v in outputs if v.name in wanted]
    if len(outputs) < len(graph.outputs):
        graph.outputs.clear()
        graph.outputs.extend(outputs)
        RemoveUnusedNodesPass()(model)
    refuse({str(v.name): (foreign or {}).get(str(v.name)) or _not_carried(v) for v in graph.outputs})


def check_outputs(graph: ir.Graph) -> None:
    """Raise UnsupportedModel for an output that no reply can carry. The types of the graph must be inferred before."""
    refuse({str(v.name): "is no tensor" if v.type is None else _not_carried(v) for v in graph.outputs})


def check_arrays(arrays: Mapping[str, Array]) -> None:
    """The same check for computed outputs: the number of axes may be unknown before."""
    refuse({name: _rank(array.ndim) for name, array in arrays.items()})


def refuse(reasons: Mapping[str, str | None]) -> None:
    """Raise UnsupportedModel if an output has a reason against it. The message says what to do.

    reasons: output → why no reply can carry it; None if a reply can.
    """
    good = [name for name, reason in reasons.items() if reason is None]
    if len(reasons) > MAX_OUTPUTS:
        raise UnsupportedModel(
            f"the network has {len(reasons)} outputs; a reply carries up to {MAX_OUTPUTS}: {_way_out(good)}"
        )
    for name, reason in reasons.items():
        if reason is not None:
            raise UnsupportedModel(f"the output {_short(name)!r} {reason}, which no reply can carry; {_way_out(good)}")


def _not_carried(value: ir.Value) -> str | None:
    name = str(value.name or "")
    if isinstance(value.type, ir.SequenceType):
        return "is a sequence of tensors"
    if isinstance(value.type, ir.OptionalType):
        return "is an optional value"
    if isinstance(value.type, ir.SparseTensorType):
        return "is a sparse tensor"
    if value.dtype is not None and _dtype(value.dtype) not in DTYPES:
        return f"holds {value.dtype.name.lower()} values"
    if not 0 < len(name) <= MAX_NAME:
        return f"has a name of {len(name)} characters (1 to {MAX_NAME} fit)"
    return None if value.shape is None else _rank(len(value.shape))


def _rank(axes: int) -> str | None:
    return f"has {axes} axes (up to {MAX_DIMS} fit)" if axes > MAX_DIMS else None


def _dtype(kind: ir.DataType) -> str:
    """The name of the type in NumPy and in the reply; bfloat16 becomes float32 (widen.py)."""
    return {"FLOAT": "float32", "DOUBLE": "float64", "BFLOAT16": "float32"}.get(kind.name, kind.name.lower())


def _way_out(good: Sequence[str]) -> str:
    if not good:
        return "export the network without the operators that make it"
    if len(good) > _SHOWN:
        return f"keep some: --outputs {','.join(good[:2])},…"
    names = ",".join(good)
    return f"keep the others: --outputs {names if names.isascii() and ' ' not in names else repr(names)}"


def _listed(names: Iterable[str]) -> str:
    names = [_short(n) for n in names]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}…"
