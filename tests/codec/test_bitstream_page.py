"""docs/bitstream.md and the code say the same: the order of checks, all fields of the profile, the fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import struct
import typing
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import vectors
from codec_helpers import make_profile, relu_features
from msgspec import UNSET

from splitwire.codec import errors
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import SplitwireError
from splitwire.codec.profile import CodecProfile, Preprocessing, SizeSpec
from splitwire.codec.tables import ContextTables
from splitwire.codec.wire.frame import DecoderLimits, parse_frame

PAGE = (Path(__file__).parents[2] / "docs" / "bitstream.md").read_text(encoding="utf-8")


def rows(part: str) -> Iterator[list[str]]:
    """The cells of the tables between `<!-- part -->` and `<!-- /part -->`."""
    found = re.search(rf"<!-- {part} -->\n(.*?)<!-- /{part} -->", PAGE, re.DOTALL)
    assert found, part
    for line in found[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and not set(cells[0]) <= set("-:|"):
            yield cells


# The order of checks


@dataclass(kw_only=True)
class Chunk:
    payload: bytes
    tensor: int = 0
    coder: int = 1
    lanes: int = 1
    reserved: int = 0
    planes: int = 4
    checksum: int = 0
    """XORed to the right one."""


@dataclass(kw_only=True)
class Draft:
    """A frame before it is written: checksums are made right behind whatever is changed here."""

    form: str
    fingerprint: bytes
    chunks: list[Chunk]
    magic: bytes = b"SPLW"
    major: int = 1
    flags: int = 0
    """XORed to the right ones."""
    frame_id: bytes = b"\7"
    op: int = 0
    batch: int = 1
    announced: int = 0
    """Added to the length of the last payload in the table."""
    checksum: int = 0
    behind: bytes = b""
    keep: int | None = None
    """Cut to N bytes; negative: counted from the end."""
    limits: DecoderLimits = field(default_factory=DecoderLimits)
    conceal: bool = False

    def write(self) -> bytes:
        if self.form == "compact":
            return self.compact()
        flags = self.flags ^ (self.form == "short")
        head = struct.pack("<4sBBBB8sIH", self.magic, self.major, 0, flags, self.op, self.fingerprint, 7, self.batch)
        if self.form == "short":
            (chunk,) = self.chunks
            head += struct.pack("<BB", chunk.coder, chunk.lanes)
            checksum = zlib.crc32(head + chunk.payload) ^ self.checksum
            frame = head + struct.pack("<I", checksum) + chunk.payload
        else:
            head += struct.pack("<H", len(self.chunks))
            for i, c in enumerate(self.chunks):
                length = len(c.payload) + (self.announced if i == len(self.chunks) - 1 else 0)
                crc = zlib.crc32(c.payload) ^ c.checksum
                head += struct.pack("<BBBBIII", c.tensor, c.coder, c.lanes, c.reserved, c.planes, length, crc)
            head += struct.pack("<I", zlib.crc32(head) ^ self.checksum)
            frame = head + b"".join(c.payload for c in self.chunks)
        return (frame + self.behind)[: self.keep]

    def compact(self) -> bytes:
        (chunk,) = self.chunks
        coding = 8 * chunk.coder + chunk.lanes - 1
        head = struct.pack("<B4s", 0xE0 ^ self.flags, self.fingerprint[:4])
        head += struct.pack("<BBB", self.op, coding, self.batch) + self.frame_id
        checksum = zlib.crc32(head + chunk.payload) ^ self.checksum
        return (head + struct.pack("<I", checksum) + chunk.payload + self.behind)[: self.keep]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong. step: of the page. says: in the message."""

    step: str
    says: str
    do: Callable[[Draft], None]


def chunk(index: int, **changes: Any) -> Callable[[Draft], None]:
    def do(draft: Draft) -> None:
        draft.chunks[index] = replace(draft.chunks[index], **changes)

    return do


def head(**changes: Any) -> Callable[[Draft], None]:
    def do(draft: Draft) -> None:
        for name, value in changes.items():
            setattr(draft, name, value)

    return do


def limit(**changes: int) -> Callable[[Draft], None]:
    def do(draft: Draft) -> None:
        draft.limits = replace(draft.limits, **changes)

    return do


def no_room_for_the_table(draft: Draft) -> None:
    draft.keep = 30


def damaged_and_asked_to_conceal(draft: Draft) -> None:
    draft.conceal = True
    chunk(0, checksum=1)(draft)


EITHER = [
    Fault(step="1", says="over the limit of 20", do=limit(frame_bytes=20)),
    Fault(step="2", says="a frame is at least 28 bytes; got 25", do=head(keep=25)),
    Fault(step="3", says="not a splitwire frame", do=head(magic=b"SPLX")),
    Fault(step="4", says="frame is of version 2.0", do=head(major=2)),
    Fault(step="5", says="has flags", do=head(flags=2)),
]
NO_BATCH = Fault(step="8", says="batch 0 ", do=head(batch=0))
BEHIND = [
    Fault(step="9", says="frame is of pair", do=head(fingerprint=b"another!")),
    Fault(step="10", says="names operating point 9 of 2", do=head(op=9)),
    Fault(step="11", says="over the limit of 10", do=limit(elements=10)),
]
SHORT = [
    *EITHER,
    Fault(step="6", says="its checksum does not match", do=head(checksum=1)),
    Fault(step="7", says="lanes must be at least 1", do=chunk(0, lanes=0)),
    NO_BATCH,
    *BEHIND,
    Fault(step="13a", says="chunk 0 uses coder 9", do=chunk(0, coder=9)),
    Fault(step="13b", says="9 lanes", do=chunk(0, lanes=9)),
    Fault(step="13c", says="chunk 0 uses coder 4, operating point 'n2' is of coder 1", do=chunk(0, coder=4)),
    Fault(step="16", says="rANS payload of 0 bytes ends before", do=chunk(0, payload=b"")),
]
COMPACT = [
    Fault(step="1", says="over the limit of 7", do=limit(frame_bytes=7)),
    Fault(step="2", says="a compact frame is at least 9 bytes; got 8", do=head(keep=8)),
    Fault(step="5", says="extended compact frame of version 4", do=head(flags=4)),
    Fault(step="5a", says="batch must be 1..65535", do=head(batch=0)),
    Fault(step="5a", says="frame id must be 1..4294967295", do=head(frame_id=b"\x87\0")),
    Fault(step="6", says="its checksum does not match", do=head(checksum=1)),
    *BEHIND,
    Fault(step="13a", says="chunk 0 uses coder 9", do=chunk(0, coder=9)),
    Fault(step="13b", says="2 lanes", do=chunk(0, coder=2, lanes=2)),
    Fault(step="13c", says="chunk 0 uses coder 4, operating point 'n2' is of coder 1", do=chunk(0, coder=4)),
    Fault(step="16", says="rANS payload of 0 bytes ends before", do=chunk(0, payload=b"")),
]
# chunks 0 and 1 are of tensors 0 and 1; chunk 2 is the vector of sizes
LONG = [
    *EITHER,
    Fault(step="6a", says="frame with 3 chunks needs at least 76 bytes", do=no_room_for_the_table),
    Fault(step="6b", says="over the limit of 67108864", do=head(announced=1 << 30)),
    Fault(step="6c", says="frame header is damaged", do=head(checksum=1)),
    Fault(step="6d", says=" bytes, has ", do=head(keep=-1)),
    Fault(step="6e", says="1 too many", do=head(behind=b"x")),
    Fault(step="7a", says="chunk 0 is invalid: reserved 1", do=chunk(0, reserved=1)),
    Fault(step="7b", says="chunk 0 is damaged", do=chunk(0, checksum=1)),
    Fault(step="7a", says="chunk 1 is invalid: reserved 0 must be 0, lanes 1 and planes 0", do=chunk(1, planes=0)),
    Fault(step="7b", says="chunk 2 is damaged", do=chunk(2, checksum=1)),
    NO_BATCH,
    *BEHIND,
    Fault(step="12", says="'s' must be from 0 to 67108864", do=chunk(2, payload=struct.pack("<q", -1))),
    Fault(step="13a", says="chunk 0 uses coder 9", do=chunk(0, coder=9)),
    Fault(step="13b", says="chunk 0 is invalid: tensor 0 of 2, 9 lanes", do=chunk(0, lanes=9)),
    Fault(step="13c", says="chunk 0 uses coder 2, operating point 'n2' is of coder 1", do=chunk(0, coder=2)),
    Fault(step="13a", says="chunk 1 uses coder 8", do=chunk(1, coder=8)),
    Fault(step="14", says="chunks hold [4, 5] planes per tensor", do=chunk(1, planes=5)),
    Fault(step="15", says="no mean to conceal tensor 't0'", do=damaged_and_asked_to_conceal),
    Fault(step="16", says="rANS payload of 0 bytes ends before", do=chunk(1, payload=b"")),
]


FAULTS = {"compact": COMPACT, "short": SHORT, "long": LONG}


def with_faults(draft: Draft, *faults: Fault) -> Draft:
    draft = replace(draft, chunks=list(draft.chunks))
    for fault in faults:
        fault.do(draft)
    return draft


def exclude(first: Fault, second: Fault, draft: Draft) -> bool:
    """Whether a frame cannot have both: they set the same field, or a byte too many is cut off again."""
    same = with_faults(draft, first, second) != with_faults(draft, second, first)
    return same or {first.step, second.step} in ({"7b", "15"}, {"6d", "6e"})


@pytest.fixture(scope="module")
def drafts() -> dict[str, tuple[FeatureCodec, Draft]]:
    """By form: a codec and a frame that it takes."""
    made = {}
    for form in FAULTS:
        short = form != "long"
        profile = make_profile(((4, 5, 5),) if short else ((4, 5, 5), (4, 3, 3)), (2, 4))
        if not short:
            profile = msgspec.structs.replace(profile, sizes=(SizeSpec(name="s", length=1),))
        codec = FeatureCodec(profile)
        features = [relu_features((1, *t.shape)) for t in profile.tensors]
        frame = codec.encode(features, op="n2", sizes=() if short else [np.array([5])])
        chunks = [
            Chunk(tensor=c.tensor, coder=c.coder or 1, lanes=c.lanes, planes=c.planes or 4, payload=bytes(c.payload))
            for c in parse_frame(frame).chunks
        ]
        draft = Draft(form=form, fingerprint=codec.fingerprint, chunks=chunks)
        codec.decode(draft.write())
        made[form] = codec, draft
    return made


def error(codec: FeatureCodec, draft: Draft) -> SplitwireError:
    with pytest.raises(SplitwireError) as caught:
        FeatureCodec(codec.profile, draft.limits).decode(draft.write(), conceal=draft.conceal)
    return caught.value


@pytest.mark.parametrize("form", ["compact", "short", "long"])
def test_of_several_faults_the_first_in_the_order_of_the_page_is_named(
    form: str, drafts: dict[str, tuple[FeatureCodec, Draft]]
) -> None:
    codec, sound = drafts[form]
    faults, names, pairs = FAULTS[form], {cells[0]: cells[2] for cells in rows("checks")}, 0
    for fault in faults:
        found = error(codec, with_faults(sound, fault))
        assert fault.says in str(found) and type(found).__name__ in names[fault.step].split(", "), (fault.step, found)
    for first, second in itertools.combinations(faults, 2):
        if not exclude(first, second, sound):
            found = error(codec, with_faults(sound, first, second))
            assert first.says in str(found), f"step {first.step} before step {second.step}: {found}"
            pairs += 1
    assert pairs > {"compact": 40, "short": 70, "long": 200}[form]


def test_the_page_numbers_the_checks_in_the_order_of_the_test_and_names_our_errors() -> None:
    table = [(cells[0], cells[2]) for cells in rows("checks")][1:]
    steps = [step for step, _ in table]
    others = {"compact": r"[3478]|[67][a-z]|12|14|15", "short": r"5a|6[a-z]|7[a-z]|12|14|15", "long": "5a|[67]"}
    for faults, other in ((FAULTS[form], other) for form, other in others.items()):
        tested = list(dict.fromkeys(f.step for f in faults))
        assert tested == [s for s in steps if not re.fullmatch(other, s)]
    for _, names in table:
        assert all(hasattr(errors, name) for name in names.split(", ")), names


# The profile


def structs(kind: Any, found: dict[str, type[msgspec.Struct]]) -> dict[str, type[msgspec.Struct]]:
    """All structs that a type holds, by name."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind.__name__ not in found:
            found[kind.__name__] = kind
            for hint in typing.get_type_hints(kind).values():
                structs(hint, found)
        return found
    for part in typing.get_args(kind):
        structs(part, found)
    return found


KINDS = structs(CodecProfile, {})


def if_missing(kind: type[msgspec.Struct], one: msgspec.structs.FieldInfo) -> str:
    """What the page says in the third column."""
    if one.required:
        return "required"
    written = json.loads(msgspec.json.encode(Preprocessing(crop=(1, 1)))) if kind is Preprocessing else {}
    default = written.get(one.encode_name, one.default)
    return "unset" if default is UNSET else "`" + msgspec.json.encode(default).decode() + "`"


def test_every_field_of_the_profile_is_on_the_page() -> None:
    part = PAGE[PAGE.index("<!-- fields -->") : PAGE.index("<!-- /fields -->")]
    tables = dict(re.findall(r"\*\*`(\w+)`\*\*.*\n\n((?:\|.*\n)+)", part))
    assert set(tables) == set(KINDS)
    for name, table in tables.items():
        described = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
        fields = msgspec.structs.fields(KINDS[name])
        assert [cells[0] for cells in described] == [f"`{f.encode_name}`" for f in fields], name
        assert [cells[2] for cells in described] == [if_missing(KINDS[name], f) for f in fields], name
        for cells, one in zip(described, fields, strict=True):
            choices = re.findall(r"`\"?([\w.]+)\"?`", cells[1])
            assert set(choices) == literals(one.type), (name, one.name)


def literals(kind: Any) -> set[str]:
    """The values of a Literal, wherever it is in the type."""
    if typing.get_origin(kind) is typing.Literal:
        return {str(value) for value in typing.get_args(kind)}
    return set().union(*(literals(part) for part in typing.get_args(kind)))


def fingerprint_by_the_page(profile: bytes) -> bytes:
    """§3, in its three steps: nothing is parsed."""
    key = b'"operating_points":[{"name":"'
    name = profile[profile.index(key) + len(key) :].split(b'"')[0]
    start = profile.index(b'"default_op":"') + len(b'"default_op":"')
    end = profile.index(b'"', start)
    return hashlib.sha256(profile[:start] + name + profile[end:]).digest()[:8]


def test_the_fingerprint_is_a_replacement_in_the_bytes() -> None:
    for name in vectors.names():
        text = vectors.load(name).profile
        assert fingerprint_by_the_page(text.encode()) == CodecProfile.from_json(text).fingerprint, name


@pytest.mark.parametrize(
    "text",
    [
        '"default_op":"x"',
        '"operating_points":[{"name":"x"',
        "a\\",
        '\\"default_op":"',
        "ÄÖ ₂ \u2028 \x01",
        "default_op",
    ],
)
def test_the_replacement_is_not_led_astray_by_what_users_write(text: str) -> None:
    """Names and labels stand before the fields that are looked for, or between them."""
    profile = make_profile(((4, 5, 5),), (2, 4))
    specs = tuple(msgspec.structs.replace(t, name=text) for t in profile.tensors)
    ours = msgspec.structs.replace(profile, model=text, cut=text, tensors=specs, labels=(text, "default_op", text))
    assert ours.default_op != ours.operating_points[0].name
    assert fingerprint_by_the_page(ours.to_json().encode()) == ours.fingerprint


def test_the_page_has_the_bounds_of_the_levels() -> None:
    """N of coder 2 is 2 to 256: one, and 257, are no quantizer."""
    assert "N is the number of levels, 2 … 256" in PAGE
    point = make_profile(((4, 5, 5),), (2,)).operating_points[0].tensors[0]
    assert isinstance(point.tables, ContextTables)
    for count in (1, 257):
        levels = tuple(float(i) for i in range(count))
        with pytest.raises(ValueError, match=r"quantizer needs 2\.\.256 levels"):
            msgspec.structs.replace(point.quantizer, levels=levels, thresholds=levels[1:])
