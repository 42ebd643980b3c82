"""`make api` writes docs/api.md from the signatures and docstrings of the public names; `--check` compares it only.

griffe reads the sources, laid out as the wheel is (lint.py), without importing them: the page is the same with and
without torch. The writers of Markdown (griffe2md, lazydocs, pydoc-markdown, pdoc, Sphinx's) show modules with all their
names, or import the code; here each public name stands once, as users write it, so the Markdown is made here.
`_HOME` of splitwire/__init__.py says which names are public, GROUPS where each is shown.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import griffe
import lint

Kind = TypeVar("Kind")
PAGE = lint.ROOT / "docs" / "api.md"

INTRODUCTION = """\
# Public API

After `import splitwire`, each name on this page is `splitwire.NAME`. Import nothing from the modules below
it: they move. [stability.md](stability.md) says what a version number promises of these names.

`make api` writes this page from docstrings and signatures. What follows a `*` in a signature is passed by name. A field
that is `UNSET` was not given, and is not written to the profile.
"""

GROUPS = {
    "Exporting": (
        "A trained network → front.onnx and back.onnx. Needs `splitwire[export]`.",
        "export recalibrate ExportResult PointMeasure QuantizedTensor PrecisionComparison PrecisionFigures SkippedInput"
        " Preprocessing PictureOptions load_network LoadedNetwork",
    ),
    "Planning": (
        "Where to cut, before anything is exported. Needs `splitwire[export]`; `measure_device`: `splitwire[edge]`.",
        "plan PlanResult Plan PlannedCut Cut Placement Latency Link measure_device DeviceProfile",
    ),
    "Evaluating": (
        "Accuracy against bytes, beside what else could be sent. Needs `splitwire[report]`.",
        "evaluate Evaluation MeasuredPoint Estimate read_results compare Comparison Standing Missed Dataset DatasetItem"
        " DetectionTruth",
    ),
    "On the edge": (
        "The front half and the link to the cloud. Needs `splitwire[edge]`.",
        "EdgeSession SplitResult Timings SessionState FrontOutputs HttpTransport Timeouts LoopbackTransport Transport"
        " Stream StreamResult StreamStats open_source Source Captured Camera Skip SkipTable SkipTrial Sameness Look"
        " StreamTransport OipHttpTransport OipGrpcTransport BatchTransport Key Tls TokenFile CircuitBreaker Event"
        " Reply Findings Classes ClassScore Detections Detection Segments Segment Values Value",
    ),
    "Rate, drift and recalibration": (
        "What adapts and watches a running edge (control.md). Needs `splitwire[edge]`.",
        "RateController Rung LinkState DriftMonitor DriftReference DriftLimits FrameLength Capture CapturedFile",
    ),
    "Store and forward": (
        "Frames that wait on disk until the server has answered them (spool.md). Needs `splitwire[edge]`.",
        "Spool Spooled SpoolStats SpoolCounts Drain DrainCounts",
    ),
    "In the cloud": (
        "The back half and the server. Needs `splitwire[cloud]`.",
        "CloudSession CloudResult serve create_app ServerLimits Security GrpcOptions ModelRepository RepositoryLimits"
        " load_pairs ServedPairs",
    ),
    "The codec alone": (
        "Arrays in, bytes out, and the profile that both ends share. Needs no extra.",
        "FeatureCodec DecodedFrame DecoderLimits CodecProfile TensorSpec OperatingPoint TensorPoint Quantizer Clipping"
        " SizeSpec",
    ),
}
ERRORS = "Errors"
BASE = "SplitwireError"
MARK = re.compile(r"(?:^|(?<=[.;:] ))((?:[a-z]\w*)(?:, [a-z]\w*)*): ")
"""Where a docstring begins to speak of parameters or fields."""
AFTER = re.compile(r"(?<=\.) (?=Raises |Returns )")
OWN_PARAGRAPH = ("Raises ", "Returns ", "Source: ")


class Page:
    """The public names in the sources at `folder`, and the page about them."""

    def __init__(self, folder: Path) -> None:
        loaded = griffe.load(
            "splitwire", search_paths=[folder], try_relative_path=False, allow_inspection=False, resolve_aliases=True
        )
        self.package = _as(griffe.Module, loaded)
        self.homes = _homes(folder / "splitwire" / "__init__.py")
        self.paths = {f"{module}.{attribute}": name for name, (module, attribute) in self.homes.items()}
        self.errors = [name for name, (module, _) in self.homes.items() if module == "splitwire.codec.errors"]
        self.types: dict[str, str] = {}

    def object(self, name: str) -> griffe.Object:
        """What a public name stands for."""
        return self.at(".".join(self.homes[name]))

    def at(self, path: str) -> griffe.Object:
        """The object at a path with "splitwire." in front, wherever it was passed on from."""
        member = self.package[path.removeprefix("splitwire.")]
        target = member.final_target if isinstance(member, griffe.Alias) else member
        return _as(griffe.Object, target)

    def render(self) -> str:
        """The whole page."""
        grouped = [name for _, names in GROUPS.values() for name in names.split()]
        wrong = set(grouped) ^ (set(self.homes) - set(self.errors))
        if wrong or len(grouped) != len(set(grouped)):
            raise SystemExit(f"GROUPS of .ci/api.py and splitwire.__all__ differ: {', '.join(sorted(wrong))}")
        parts = [INTRODUCTION, self.contents()]
        for group, (line, names) in GROUPS.items():
            parts.append(f"## {group}\n\n{line}\n")
            parts += [self.entry(name) for name in names.split()]
        parts += [self.error_table(), self.type_table()]
        return re.sub(r"(?m)^(- .*\n)\n+(?=- )", r"\1", re.sub(r"\n{3,}", "\n\n", "\n".join(parts)))

    def contents(self) -> str:
        """A line per group, with links."""
        lines = []
        anchors: Counter[str] = Counter()
        for group, (_, names) in GROUPS.items():
            links = " · ".join(f"[{name}](#{_anchor(name, anchors)})" for name in names.split())
            lines.append(f"| {group} | {links} |")
        lines.append(f"| [{ERRORS}](#{ERRORS.lower()}) | {' · '.join(sorted(self.errors))} |")
        return "\n".join(["| | |", "|---|---|", *lines, ""])

    def entry(self, name: str) -> str:
        """Heading, signature, docstring; of a class its properties and methods."""
        thing = self.object(name)
        lines = [f"### {name}", ""]
        if isinstance(thing, griffe.Function):
            return "\n".join([*lines, *self.code(name, thing), *self.prose(thing, _names(thing)), ""])
        if isinstance(thing, griffe.Attribute):
            return "\n".join([*lines, "```python", f"{name} = {self.text(thing.value)}", "```", "", *_said(thing), ""])
        thing = _as(griffe.Class, thing)
        fields = [m for m in thing.attributes.values() if _is_field(m)]
        start = thing.members.get("__init__")
        if _is_enum(thing):
            values = ", ".join(f"{name}.{m.name} = {m.value}" for m in thing.attributes.values())
            lines += ["```python", values, "```", ""]
        elif isinstance(start, griffe.Function):
            lines += self.code(name, start)
        elif fields:
            lines += self.code(name, fields)
        known = {field.name for field in fields} | (_names(start) if isinstance(start, griffe.Function) else set())
        lines += self.prose(thing, known | {m.name for m in thing.attributes.values()})
        lines += [f"- **{f.name}**: {_linked(_first(f))}" for f in fields if f.docstring]
        lines += [""] if any(f.docstring for f in fields) else []
        properties = [m for m in thing.attributes.values() if "property" in m.labels and m.is_public]
        for m in properties:
            lines.append(f"- `.{m.name}` → `{self.text(m.annotation)}`: {_linked(_first(m))}")
        lines += [""] if properties else []
        for method in thing.functions.values():
            if method.is_public and not method.name.startswith("_"):
                lines += self.code(f"{name}.{method.name}", method)
                lines += self.prose(method, _names(method))
        return "\n".join(lines)

    def code(self, name: str, of: griffe.Function | list[griffe.Attribute]) -> list[str]:
        """A signature, on several lines where it is long."""
        after = ""
        if isinstance(of, list):
            arguments = ["*", *(self.argument(f.name, f.annotation, f.value) for f in of)]
        else:
            arguments = self.arguments(of)
            after = "" if of.returns is None or of.name == "__init__" else f" -> {self.text(of.returns)}"
        short = f"{name}({', '.join(arguments)}){after}"
        if len(short) <= 100:
            return ["```python", short, "```", ""]
        return ["```python", f"{name}(", *(f"    {a}," for a in arguments), f"){after}", "```", ""]

    def arguments(self, function: griffe.Function) -> list[str]:
        """Parameters without self, and a `*` before those that are passed by name."""
        arguments = []
        for p in function.parameters:
            if p.name in ("self", "cls"):
                continue
            if p.kind is griffe.ParameterKind.keyword_only and "*" not in arguments:
                arguments.append("*")
            arguments.append(self.argument(p.name, p.annotation, p.default))
        return arguments

    def argument(self, name: str, kind: griffe.Expr | str | None, default: griffe.Expr | str | None) -> str:
        """`name: kind = default`."""
        typed = f"{name}: {self.text(kind)}" if kind is not None else name
        return typed if default is None else f"{typed} = {self.value(default)}"

    def value(self, default: griffe.Expr | str) -> str:
        """A default; a constant of ours by what it holds."""
        if isinstance(default, griffe.ExprName) and default.canonical_path.startswith("splitwire."):
            held = self.at(default.canonical_path)
            if isinstance(held, griffe.Attribute) and held.value is not None:
                return str(held.value)
        return str(default)

    def text(self, annotation: griffe.Expr | str | None) -> str:
        """A type as a user writes it: public names for ours; what they stand for is noted for the table of types."""
        if annotation is None or isinstance(annotation, str):
            return str(annotation)
        words = []
        for part in annotation.iterate(flat=True):
            if not isinstance(part, griffe.ExprName):
                words.append(str(part))
                continue
            path = part.canonical_path
            ours = self.at(path) if path.startswith("splitwire.") and path not in self.paths else None
            if isinstance(ours, griffe.Attribute) and str(ours.value).startswith("Annotated["):
                words.append(self.text(ours.value))
                continue
            words.append(self.paths.get(path, part.name))
            if ours is not None and not part.name.isupper():
                self.types.setdefault(path, part.name)
        return _plain("".join(words))

    def prose(self, thing: griffe.Object, known: set[str]) -> list[str]:
        """A docstring as Markdown: paragraphs, examples, and what it says of parameters and fields as a list."""
        lines: list[str] = []
        for kind, text in _paragraphs(thing.docstring.value if thing.docstring else ""):
            if kind == "code":
                lines += ["```python", text, "```", ""]
                continue
            marks = [m for m in MARK.finditer(text) if set(m[1].split(", ")) <= known]
            ends = [*(m.start() for m in marks[1:]), *([len(text)] if marks else [])]
            before = text[: marks[0].start()].strip() if marks else text
            lines += [_linked(before), ""] if before else []
            after: list[str] = []
            for m, end in zip(marks, ends, strict=True):
                said, *others = AFTER.split(text[m.end() : end].strip(" ;"))
                lines.append(f"- **{m[1]}**: {_linked(said)}")
                after += others
            lines += [""] if marks else []
            lines += [_linked(" ".join(after)), ""] if after else []
        return lines

    def error_table(self) -> str:
        """Every error with its base, code, exit status and meaning."""
        lines = [
            f"## {ERRORS}\n",
            "A message says what was expected, what came and what to do, in one line. `except` of a base takes those"
            " below it. `code` goes over the wire; a command ends with the status. Needs no extra.\n",
            "| Error | is a | `code` | status | when |",
            "|---|---|---|--:|---|",
        ]

        def chain(name: str) -> list[griffe.Class]:
            error = _as(griffe.Class, self.object(name))
            base = str(error.bases[0])
            return [error, *(chain(base) if base in self.homes else [])]

        def inherited(classes: list[griffe.Class], attribute: str) -> str:
            return next(str(c.attributes[attribute].value) for c in classes if attribute in c.attributes).strip("'\"")

        order = list(self.package["codec.errors"].classes)
        for name in order:
            classes = chain(name)
            code, status = inherited(classes, "code"), inherited(classes, "exit_status")
            meaning = _linked(_first(classes[0]))
            lines.append(f"| {name} | {classes[0].bases[0]} | `{code}` | {status} | {meaning} |")
        return "\n".join([*lines, ""])

    def type_table(self) -> str:
        """What the types that signatures name without a public name stand for."""
        rows: dict[str, list[str]] = {}
        waiting = dict(self.types)
        while waiting:
            path, name = waiting.popitem()
            thing = self.at(path)
            before = set(self.types)
            if isinstance(thing, griffe.Attribute):
                meaning = f"`{self.text(thing.value)}`"
            else:
                meaning = ", ".join(f"`.{m.name}`" for m in thing.attributes.values() if m.is_public)
            package = path.split(".")[1]
            row = [f"`{name}`", meaning, _linked(_first(thing)), package]
            rows[" ".join(row[:3])] = [cell.replace("|", "\\|") for cell in row]
            waiting |= {p: n for p, n in self.types.items() if p not in before}
        head = [
            "## Types in signatures\n",
            "What else signatures name; none of these is a public name. Of a class: what an object of it has.\n",
            "| Type | is | |",
            "|---|---|---|",
        ]
        names = Counter(name for name, *_ in rows.values())
        lines = []
        for key in sorted(rows, key=str.lower):
            name, meaning, said, package = rows[key]
            lines.append(f"| {name}{f' ({package})' if names[name] > 1 else ''} | {meaning} | {said} |")
        return "\n".join([*head, *lines, ""])


def _as(kind: type[Kind], thing: object) -> Kind:
    if not isinstance(thing, kind):
        raise TypeError(f"{thing} is no {kind.__name__}: is it defined by an `if`?")
    return thing


def _anchor(heading: str, counts: Counter[str]) -> str:
    """A heading's anchor as GitHub makes it: the second of one spelling gets "-1"."""
    anchor = heading.lower()
    counts[anchor] += 1
    return anchor if counts[anchor] == 1 else f"{anchor}-{counts[anchor] - 1}"


def _homes(init: Path) -> dict[str, tuple[str, str]]:
    """Public name → (module, name there), in the order of `_HOME`."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            told: dict[str, str] = ast.literal_eval(node.value)
            parts = {name: home.partition(":") for name, home in told.items()}
            return {name: (module, attribute or name) for name, (module, _, attribute) in parts.items()}
    raise SystemExit(f"{init} has no _HOME")


def _is_field(m: griffe.Attribute) -> bool:
    """Whether an attribute of a class is an argument when one is made."""
    plain = m.annotation is not None and "property" not in m.labels and m.is_public
    return plain and "instance-attribute" in m.labels and not str(m.annotation).startswith("ClassVar")


def _is_enum(c: griffe.Class) -> bool:
    return any(str(base).endswith("Enum") for base in c.bases)


def _names(function: griffe.Function) -> set[str]:
    return {p.name for p in function.parameters}


def _first(thing: griffe.Object) -> str:
    """The first paragraph of a docstring, on one line."""
    return next((text for _, text in _paragraphs(thing.docstring.value if thing.docstring else "")), "")


def _said(thing: griffe.Object) -> list[str]:
    return [_linked(text) for _, text in _paragraphs(thing.docstring.value if thing.docstring else "")]


def _paragraphs(docstring: str) -> Iterator[tuple[str, str]]:
    """("text", one line) and ("code", lines) in order. Indented lines behind a blank one are code."""
    for block in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = block.split("\n")
        if lines[0].startswith("    "):
            yield "code", "\n".join(line[4:] for line in lines)
            continue
        text: list[str] = []
        listed = any(line.startswith("    ") for line in lines)
        for before, line in zip(["", *lines], lines, strict=False):
            ends = listed and (before.startswith("    ") or MARK.match(before)) and not line.startswith("    ")
            if text and (line.startswith(OWN_PARAGRAPH) or (ends and not MARK.match(line))):
                yield "text", " ".join(text)
                text = []
            text.append(line.strip())
        if any(text):
            yield "text", " ".join(text)


def _linked(text: str) -> str:
    """Pages of docs/ as links, and what Markdown would take for emphasis or HTML as it is."""
    text = re.sub(r"docs/([\w/]+\.md)", r"[\1](\1)", text)
    return re.sub(r"(?<![\w`*\\])\*(?=\w)|<(?=[A-Za-z])", r"\\\g<0>", text)


def _plain(annotation: str) -> str:
    """A type without what only our checks read: `Annotated[int, Meta(…)]` → `int`."""
    while "Annotated[" in annotation:
        start = annotation.index("Annotated[")
        depth, end = 1, start + len("Annotated[")
        while depth:
            depth += {"[": 1, "]": -1}.get(annotation[end], 0)
            end += 1
        inside = annotation[start + len("Annotated[") : end - 1]
        annotation = annotation[:start] + inside[: inside.rindex(", Meta(")] + annotation[end:]
    return annotation.replace("UnsetType", "UNSET")


def written() -> str:
    """The page as the sources have it now."""
    with tempfile.TemporaryDirectory() as folder:
        lint.lay_out(Path(folder))
        return Page(Path(folder)).render()


def main() -> int:
    """Write the page; with --check compare it only, status 1 where it differs."""
    page = written()
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if page == old:
        return 0
    changes = difflib.unified_diff(
        old.splitlines(), page.splitlines(), "docs/api.md", "docs/api.md as it should be", lineterm="", n=0
    )
    print("docs/api.md is not current; run `make api` and commit it.", *list(changes)[:40], sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
