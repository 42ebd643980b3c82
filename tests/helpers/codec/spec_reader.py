"""A decoder written from docs/bitstream.md alone, in plain Python: no numpy, no Numba, nothing of splitwire.

It is the slow oracle of the tests, and the proof that the page is enough. Do not make it share code with `codec/`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from typing import Any


def read_frame(frame: bytes, profile_text: str):
    """(operating point index, frame id, batch, [level indices per tensor: list of planes, each a list of rows]).

    Of coefficients (coders 5 and 6): what they are decoded to in place of level indices.
    """
    profile = json.loads(profile_text)
    if frame[0] > 127:
        return read_compact(frame, profile, profile_text)
    magic, major, _, flags, op, fingerprint, frame_id, batch, n_chunks = struct.unpack_from("<4sBBBB8sIHH", frame)
    assert magic == b"SPLW" and major == 1 and flags in (0, 1) and batch >= 1
    assert fingerprint == fingerprint_of(profile_text)
    specs = profile["tensors"]
    if flags == 1:
        coder, lanes, checksum = struct.unpack_from("<BBI", frame, 22)
        assert zlib.crc32(frame[:24] + frame[28:]) == checksum and len(specs) == 1 and "sizes" not in profile
        point = point_of(profile, op, 0)
        planes = DECODERS[coder](frame[28:], point, specs[0], lanes, batch * planes_of(specs[0])[0], 0)
        return op, frame_id, batch, [planes]
    assert n_chunks >= 1
    end = 24 + 16 * n_chunks
    assert zlib.crc32(frame[:end]) == struct.unpack_from("<I", frame, end)[0]
    position = end + 4
    planes = [[] for _ in specs]
    for k in range(n_chunks):
        tensor, coder, lanes, reserved, count, length, crc = struct.unpack_from("<BBBBIII", frame, 24 + 16 * k)
        assert reserved == 0
        payload = frame[position : position + length]
        position += length
        assert len(payload) == length and zlib.crc32(payload) == crc
        if tensor >= len(planes):
            assert (coder, lanes, count) == (3, 1, 1)  # read_sizes
            continue
        point = point_of(profile, op, tensor)
        planes[tensor] += DECODERS[coder](payload, point, specs[tensor], lanes, count, len(planes[tensor]))
    assert position == len(frame)
    assert [len(p) for p in planes] == [batch * planes_of(spec)[0] for spec in specs]
    return op, frame_id, batch, planes


def read_compact(frame: bytes, profile, profile_text: str):
    """A compact frame, as `read_frame`."""
    (spec,) = profile["tensors"]
    assert frame[1:5] == fingerprint_of(profile_text)[:4] and "sizes" not in profile
    op, lanes, batch, frame_id, position = frame[0] % 32, 1, 1, 0, 5
    coder = None
    if frame[0] & 64:
        assert op == 0
        op, coder, lanes = frame[5], frame[6] // 8, frame[6] % 8 + 1
        batch, position = read_varint(frame, 7)
    if frame[0] & 32:
        frame_id, position = read_varint(frame, position)
        assert frame_id > 0
    assert frame_id < 2**32 and 0 < batch < 2**16
    (checksum,) = struct.unpack_from("<I", frame, position)
    payload = frame[position + 4 :]
    assert zlib.crc32(frame[:position] + payload) == checksum
    point = point_of(profile, op, 0)
    assert coder in (None, coder_of(point, spec))
    planes = DECODERS[coder_of(point, spec)](payload, point, spec, lanes, batch * planes_of(spec)[0], 0)
    return op, frame_id, batch, [planes]


def read_varint(frame: bytes, position: int):
    """A number in seven bits per byte, and the position behind it."""
    end = next(i for i in range(position, position + 5) if frame[i] < 128) + 1
    assert frame[end - 1] or end == position + 1
    return sum((byte & 127) << 7 * i for i, byte in enumerate(frame[position:end])), end


def coder_of(point, spec) -> int:
    """The coder of a tensor at an operating point (section 3)."""
    if "step" in point:
        return int(spec["transform"].get("coder", 5))
    if point.get("prediction") is not None:
        return 4
    return 2 if point["tables"] is None else 1


def point_of(profile, op: int, tensor: int):
    """What an operating point says of a tensor; of coefficients it is the step."""
    point = profile["operating_points"][op]
    return {"step": point["steps"][tensor]} if "steps" in point else point["tensors"][tensor]


def read_sizes(frame: bytes, profile_text: str) -> list[tuple[int, ...]]:
    """The vectors of integers of coder 3, of a frame that `read_frame` takes."""
    profile = json.loads(profile_text)
    if frame[0] > 127 or frame[6] == 1:
        return []
    (n_chunks,) = struct.unpack_from("<H", frame, 22)
    position = 28 + 16 * n_chunks
    found: list[tuple[int, ...]] = []
    for k in range(n_chunks):
        tensor, coder, _, _, _, length, _ = struct.unpack_from("<BBBBIII", frame, 24 + 16 * k)
        if coder == 3:
            assert (
                tensor == len(profile["tensors"]) + len(found) and length == 8 * profile["sizes"][len(found)]["length"]
            )
            found.append(struct.unpack_from(f"<{length // 8}q", frame, position))
            assert all(0 <= v <= 2**26 for v in found[-1])
        position += length
    assert len(found) == len(profile.get("sizes", ()))
    return found


def fingerprint_of(profile_text: str) -> bytes:
    first = json.loads(profile_text)["operating_points"][0]["name"]
    neutral = re.sub(r'"default_op":"[^"]*"', f'"default_op":"{first}"', profile_text, count=1)
    return hashlib.sha256(neutral.encode()).digest()[:8]


def planes_of(spec):
    """Channels, height and width of a tensor of the profile."""
    return [1, 1, *spec["shape"]][-3:]


def read_tables(point):
    """Everything that coder 1 looks up: block, side of the context map, activities, map, and per table its row."""
    n = len(point["quantizer"]["levels"])
    tables = point["tables"]
    bh, bw = tables["block"]
    left_activity, top_activity, context_map = (
        base64.b64decode(tables[name]) for name in ("left_activity", "top_activity", "context_map")
    )
    k = n ** (bh * bw)
    raw = base64.b64decode(tables["frequencies"])
    rows_of_tables = [struct.unpack_from(f"<{k + 1}H", raw, i) for i in range(0, len(raw), 2 * (k + 1))]
    return n, k, bh, bw, tables["activities"] + 1, left_activity, top_activity, context_map, rows_of_tables


def slots_of(row):
    """Per slot of a table what it stands for: (entry or None for the escape, frequency, cumulative)."""
    slots, cumulative = [], 0
    for entry, f in enumerate(row):
        slots += [(entry if entry < len(row) - 1 else None, f, cumulative)] * f
        cumulative += f
    assert cumulative == 4096
    return slots


def read_symbol(x, lane: int, slots, words, number: int):
    """Decode one symbol, of `number` there are, with a table's slots from the state of a lane."""
    symbol, f, cumulative = slots[x[lane] % 4096]
    x[lane] = f * (x[lane] // 4096) + x[lane] % 4096 - cumulative
    if x[lane] < 2**15:
        x[lane] = x[lane] * 2**16 + next(words)
    if symbol is None:
        slot = x[lane] % 4096
        symbol = slot // 16
        assert symbol < number
        x[lane] = 16 * (x[lane] // 4096) + slot % 16
        if x[lane] < 2**15:
            x[lane] = x[lane] * 2**16 + next(words)
    return symbol


def read_states(payload: bytes, lanes: int):
    """The states at the start, and the words behind them."""
    assert len(payload) % 2 == 0 and 1 <= lanes <= 8
    words = iter(struct.unpack(f"<{len(payload) // 2}H", payload))
    x = [(next(words) << 16) + next(words) for _ in range(lanes)]
    assert all(2**15 <= state < 2**31 for state in x)
    return x, words


def read_rans(payload: bytes, point, spec, lanes: int, count: int, first: int):
    """Coder 1: `count` planes, the first of which is plane `first` of the tensor."""
    channels, height, width = planes_of(spec)
    n, k, bh, bw, side, left_activity, top_activity, context_map, rows_of_tables = read_tables(point)
    entries = [slots_of(row) for row in rows_of_tables]
    x, words = read_states(payload, lanes)
    rows, cols = -(-height // bh), -(-width // bw)
    out = []
    for start in range(0, count, lanes):
        group = range(min(lanes, count - start))
        symbols = [[[0] * cols for _ in range(rows)] for _ in group]
        for r in range(rows):
            for c in range(cols):
                for lane in group:
                    done = symbols[lane]
                    top = top_activity[done[r - 1][c]] if r else side - 1
                    left = left_activity[done[r][c - 1]] if c else side - 1
                    channel = (first + start + lane) % channels
                    slots = entries[context_map[channel * side * side + top * side + left]]
                    done[r][c] = read_symbol(x, lane, slots, words, k)
        for lane in group:
            plane = [[0] * width for _ in range(height)]
            for y in range(height):
                for z in range(width):
                    s = symbols[lane][y // bh][z // bw]
                    plane[y][z] = s // n ** (y % bh * bw + z % bw) % n
            out.append(plane)
    assert next(words, None) is None and all(state == 2**15 for state in x)
    return out


def read_binary(payload: bytes, point, spec, lanes: int, count: int, first: int):
    """Coder 2."""
    _, height, width = planes_of(spec)
    n = len(point["quantizer"]["levels"])
    assert lanes == 1
    data = iter(payload + bytes(3))
    r, v = 2**32, 0
    for _ in range(4):
        v = 2**8 * v + next(data)
    a, b = [2**15] * (n - 1), [2**15] * (n - 1)
    levels = []
    for _ in range(count * height * width):
        k, one = 0, True
        while one and k < n - 1:
            bound = r * ((a[k] + b[k]) // 2) // 2**16
            one = v < bound
            if one:
                r = bound
                a[k] += (2**16 - a[k]) // 2**3
                b[k] += (2**16 - b[k]) // 2**6
                k += 1
            else:
                v, r = v - bound, r - bound
                a[k] -= a[k] // 2**3
                b[k] -= b[k] // 2**6
            while r < 2**24:
                r, v = 2**8 * r, 2**8 * v + next(data)
        levels.append(k)
    assert next(data, None) is None and v < 2**24
    rows = [levels[i : i + width] for i in range(0, len(levels), width)]
    return [rows[i : i + height] for i in range(0, len(rows), height)]


def numbers(text: str, kind: str):
    """The little-endian integers of a field in base64; kind: as `struct` names them."""
    raw = base64.b64decode(text)
    return struct.unpack(f"<{len(raw) // struct.calcsize(kind)}{kind}", raw)


class Prediction:
    """What coder 4 looks up (section 6), and what follows from it for one element."""

    OWN = ((0, -1), (-1, 0), (-1, -1), (-1, 1))
    PLACES = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))

    def __init__(self, point, spec):
        self.channels, self.height, self.width = planes_of(spec)
        self.levels = len(point["quantizer"]["levels"])
        p = point["prediction"]
        self.rest, self.offset, self.shift, self.activities = p["rest"], p["offset"], p["shift"], p["activities"]
        self.bias = numbers(p["bias"], "h")
        self.activity, self.channel_class, self.context_map = (
            numbers(p[name], "B") for name in ("activity", "channel_class", "context_map")
        )
        row = self.levels + 1
        raw = numbers(p["frequencies"], "H")
        self.rows = [raw[i : i + row] for i in range(0, len(raw), row)]
        sources, weights = iter(numbers(spec["taps"]["sources"], "H")), iter(numbers(p["weights"], "b"))
        self.terms = []  # per channel: (weight, source channel, rows down, columns right)
        for channel, count in enumerate(numbers(spec["taps"]["counts"], "B")):
            terms = [(next(weights), channel, *place) for place in self.OWN]
            for source in (next(sources) for _ in range(count)):
                assert source // 8 < channel // 8 * 8
                terms.append((next(weights), source // 8, *self.PLACES[source % 8]))
            self.terms.append(terms)
        assert next(sources, None) is None and next(weights, None) is None

    def value(self, image, channel: int, r: int, c: int) -> int:
        """v(channel, r, c). image: the planes by channel of those in the chunk."""
        inside = channel in image and 0 <= r < self.height and 0 <= c < self.width
        return image[channel][r][c] - self.rest if inside else 0

    def table(self, image, channel: int, r: int, c: int) -> int:
        """Which table an element has."""
        p = self.bias[channel]
        for weight, source, down, right in self.terms[channel]:
            p += weight * self.value(image, source, r + down, c + right)
        cell = min(max((p + self.offset) // 2**self.shift, 0), 255)
        near = abs(self.value(image, channel, r, c - 1)) + abs(self.value(image, channel, r - 1, c))
        a = self.activity[min(near, 15)]
        table: int = self.context_map[(self.channel_class[channel] * 256 + cell) * self.activities + a]
        return table

    def steps(self, count: int, first: int, lanes: int):
        """(index of the plane in the chunk, row, column, lane) of each element, in the order of decoding."""
        k = 0
        while k < count:
            channel = (first + k) % self.channels
            group = min(8 - channel % 8, self.channels - channel, count - k)
            for start in range(k, k + group, lanes):
                planes = range(start, min(start + lanes, k + group))
                for r in range(self.height):
                    for c in range(self.width):
                        for lane, plane in enumerate(planes):
                            yield plane, r, c, lane
            k += group


def read_predictive(payload: bytes, point, spec, lanes: int, count: int, first: int):
    """Coder 4."""
    prediction = Prediction(point, spec)
    channels, entries = prediction.channels, [slots_of(row) for row in prediction.rows]
    x, words = read_states(payload, lanes)
    out = [[[None] * prediction.width for _ in range(prediction.height)] for _ in range(count)]
    images: dict[int, dict[int, list[list[Any]]]] = {}  # by the image's number: its planes by channel
    for k in range(count):
        images.setdefault((first + k) // channels, {})[(first + k) % channels] = out[k]
    for k, r, c, lane in prediction.steps(count, first, lanes):
        image, channel = images[(first + k) // channels], (first + k) % channels
        slots = entries[prediction.table(image, channel, r, c)]
        out[k][r][c] = read_symbol(x, lane, slots, words, prediction.levels)
    assert next(words, None) is None and all(state == 2**15 for state in x)
    return out


class Coefficients:
    """What coders 5 and 6 look up (section 7), and what follows from it at one step."""

    ROOTS = (2**23, 9975792, 11863283, 14107901)

    def __init__(self, spec, step: int):
        assert 0 <= step <= 127
        _, self.tiles, self.width = planes_of(spec)
        t = spec["transform"]
        raw = numbers(t["frequencies"], "H")
        self.rows = [raw[i : i + 32] for i in range(0, len(raw), 32)]
        self.zero = numbers(t["zero_groups"], "H")
        classes = numbers(t["classes"], "B")
        assert len(classes) == self.width and all(c < 128 or c == 255 for c in classes)
        self.order = [k for c in range(127, -1, -1) for k in range(self.width) if classes[k] == c]
        assert self.order
        self.tables = [min(max(c - step - t["first"], 0), len(self.rows) - 1) for c in classes]
        self.step = self.ROOTS[step % 4] / 2**23 * 2.0 ** (step // 4 - 16)
        self.outward = t["outward"]

    def value(self, z: int) -> float:
        """The coefficient of a zigzag value."""
        q = (z + 1) // 2
        if q == 0:
            return 0.0
        y = single(single(q + self.outward[q > 1]) * self.step)
        return y if z % 2 else -y

    def groups(self, count: int):
        """(image, tile, coefficients of a group) in the order of decoding."""
        for image in range(count):
            for tile in range(self.tiles):
                for start in range(0, len(self.order), 16):
                    yield image, tile, self.order[start : start + 16]


def single(y: float) -> float:
    """The nearest float32."""
    found: float = struct.unpack("<f", struct.pack("<f", y))[0]
    return found


def read_coefficients(payload: bytes, point, spec, lanes: int, count: int, first: int):
    """Coder 5: what the coefficients of `count` images are decoded to, each image a list of tiles."""
    x, words = read_states(payload[1:], lanes)
    return read_sequence(Coefficients(spec, payload[0]), x, words, count, first_state=2**15, slots=in_order)


def read_terse(payload: bytes, point, spec, lanes: int, count: int, first: int):
    """Coder 6: the same."""
    step, x, words = read_terse_step(payload, lanes)
    coding = Coefficients(spec, point["step"] if step is None else step)
    return read_sequence(coding, x, words, count, first_state=2**15 if lanes > 1 else 0, slots=spread)


def read_terse_step(payload: bytes, lanes: int):
    """The step index of coder 6, None for the operating point's; the states behind it, and the words that are left."""
    if lanes > 1:
        x, words = read_states(payload, lanes)
    else:
        odd = len(payload) % 2
        first = [payload[0]] if odd else []
        words = iter([*first, *struct.unpack(f"<{len(payload) // 2}H", payload[odd:])])
        x, least = [0], 1 if odd else 256
        while x[0] < 2**15 and (word := next(words, None)) is not None:
            assert word >= least
            x[0], least = x[0] * 2**16 + word, 0
    slot = x[0] % 4096
    step = None if slot < 3968 else slot - 3968
    x[0] = 3968 * (x[0] // 4096) + slot if step is None else x[0] // 4096
    refill(x, 0, words, may_end=lanes == 1)
    return step, x, words


def in_order(row):
    """Of each slot of a table its symbol, and how many of the symbol's slots are before it: coder 5, flags, bytes."""
    return [(s, k) for s, f in enumerate(row) for k in range(f)]


def spread(row):
    """The same of coefficients in coder 6."""
    symbols = [s for s, f in enumerate(row) for _ in range(f)]
    found, number = [], [0] * len(row)
    for y in range(4096):
        s = symbols[int(f"{y:012b}"[::-1], 2)]
        found.append((s, number[s]))
        number[s] += 1
    return found


def refill(x, lane: int, words, *, may_end: bool):
    """Append a word to the state of a lane if it is small. may_end: unless none is left."""
    if x[lane] < 2**15:
        word = next(words, None)
        assert word is not None or may_end
        x[lane] = x[lane] if word is None else x[lane] * 2**16 + word


def read_sequence(coding, x, words, count: int, *, first_state: int, slots):
    """The sequence of section 7. first_state: of the encoder. slots: how a table lays out coefficients."""
    lanes, number = len(x), 0
    layouts: dict[tuple[tuple[int, ...], object], list[tuple[int, int]]] = {}

    def symbol(f: tuple[int, ...], layout=in_order) -> int:
        """The next of the sequence, one of len(f) with these frequencies."""
        nonlocal number
        lane = number % lanes
        number += 1
        if (f, layout) not in layouts:
            layouts[f, layout] = layout(f)
        s: int
        s, before = layouts[f, layout][x[lane] % 4096]
        x[lane] = f[s] * (x[lane] // 4096) + before
        refill(x, lane, words, may_end=first_state == 0)
        return s

    zero = [coding.zero[t] for t in coding.tables]
    flags = [symbol((zero[k[0]], 4096 - zero[k[0]])) for _, _, k in coding.groups(count)]
    out = [[[0] * coding.width for _ in range(coding.tiles)] for _ in range(count)]
    escapes = []
    for flag, (image, tile, group) in zip(flags, coding.groups(count), strict=True):
        for k in group if flag else ():
            out[image][tile][k] = symbol(coding.rows[coding.tables[k]], slots)
            if out[image][tile][k] == 31:
                escapes.append((image, tile, k))
    for image, tile, k in escapes:
        z = symbol((16,) * 256)
        z += 256 * symbol((16,) * 256)
        assert z <= 65534
        out[image][tile][k] = z
    assert next(words, None) is None and all(state == first_state for state in x)
    return [[[coding.value(z) for z in tile] for tile in image] for image in out]


DECODERS = {1: read_rans, 2: read_binary, 4: read_predictive, 5: read_coefficients, 6: read_terse}
