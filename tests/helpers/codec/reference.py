"""Encoders written from docs/bitstream.md alone, in plain Python integers: the slow oracle that the kernels must equal.

`write_frame` is the inverse of `spec_reader.read_frame`. Nothing here knows numpy, Numba or `codec/`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence

from spec_reader import Coefficients, Prediction, fingerprint_of, planes_of, point_of, read_tables, spread


def write_frame(
    profile_text: str, op: int, frame_id: int, batch: int, planes, chunks=None, sizes=(), long: bool = False
) -> bytes:
    """planes: per tensor the list of its planes, each a list of rows of level indices; of coefficients, of integers q.

    chunks: (tensor, coder, lanes, number of planes or None for all, step index of coefficients or None for the
    operating point's) of each; by default what our encoder makes, one chunk per tensor.
    sizes: the vectors of integers behind them; `chunks` may name their chunks (coder 3) too, they are left out there.
    long: the long form even for a single chunk. Otherwise that takes the form that the profile names.
    """
    profile = json.loads(profile_text)
    points = [point_of(profile, op, t) for t in range(len(planes))]
    if chunks is None:
        chunks = [
            (t, coder_of(points[t], profile["tensors"][t]), None, len(tensor), None) for t, tensor in enumerate(planes)
        ]
    table, payloads, done = b"", b"", [0] * len(planes)
    for t, coder, wanted, some, step in (c for c in chunks if c[1] != 3):
        point = points[t] if step is None else {"step": step, "usual": points[t]["step"]}
        first, count = done[t], some or len(planes[t])
        done[t] += count
        payload, lanes = ENCODERS[coder](planes[t][first : done[t]], point, profile["tensors"][t], first, wanted)
        table += struct.pack("<BBBBIII", t, coder, lanes, 0, count, len(payload), zlib.crc32(payload))
        payloads += payload
    for j, values in enumerate(sizes):
        payload = b"".join(v.to_bytes(8, "little", signed=True) for v in values)
        table += struct.pack("<BBBBIII", len(planes) + j, 3, 1, 0, 1, len(payload), zlib.crc32(payload))
        payloads += payload
    short = len(table) == 16 and not long
    if short and profile.get("frames") == "compact":
        extended = batch > 1 or table[2] > 1 or op > 31
        head = bytes([128 + 64 * extended + 32 * (frame_id > 0) + (0 if extended else op)])
        head += fingerprint_of(profile_text)[:4]
        head += bytes([op, 8 * table[1] + table[2] - 1]) + varint(batch) if extended else b""
        head += varint(frame_id) if frame_id else b""
        return head + struct.pack("<I", zlib.crc32(head + payloads)) + payloads
    coders = table[1::16]
    minor = 4 if 6 in coders else 3 if 5 in coders else 2 if 4 in coders else int(short)
    head = struct.pack("<4sBBBB8sIH", b"SPLW", 1, minor, short, op, fingerprint_of(profile_text), frame_id, batch)
    if short:
        head += table[1:3]
        return head + struct.pack("<I", zlib.crc32(head + payloads)) + payloads
    head += struct.pack("<H", len(table) // 16) + table
    return head + struct.pack("<I", zlib.crc32(head)) + payloads


def varint(value: int) -> bytes:
    """Seven bits per byte, lowest first; all but the last byte have the high bit."""
    digits = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([128 + d for d in digits[:-1]] + digits[-1:])


def coder_of(point, spec) -> int:
    """The coder of a tensor at an operating point (section 3)."""
    if "step" in point:
        return 6 if "coder" in spec["transform"] else 5
    if point.get("prediction") is not None:
        return 4
    return 2 if point["tables"] is None else 1


def write_rans(planes, point, spec, first: int = 0, lanes: int | None = None) -> tuple[bytes, int]:
    """Coder 1. planes: the first of them is plane `first` of the tensor. Returns payload and lanes, ours by default."""
    channels = planes_of(spec)[0]
    n, _, bh, bw, side, left_activity, top_activity, context_map, frequencies = read_tables(point)
    rows, cols = -(-len(planes[0]) // bh), -(-len(planes[0][0]) // bw)
    padding = point["tables"]["padding"]

    def symbol(plane, r: int, c: int) -> int:
        s = 0
        for k in range(bh * bw):
            y, x = r * bh + k // bw, c * bw + k % bw
            inside = y < len(plane) and x < len(plane[0])
            s += (plane[y][x] if inside else padding) * n**k
        return s

    if lanes is None:
        lanes = lanes_of(len(planes), len(planes) * rows * cols)
    steps: list[tuple[int, int, int]] = []
    for start in range(0, len(planes), lanes):
        group = [
            [[symbol(plane, r, c) for c in range(cols)] for r in range(rows)] for plane in planes[start : start + lanes]
        ]
        for r in range(rows):
            for c in range(cols):
                for lane, done in enumerate(group):
                    top = top_activity[done[r - 1][c]] if r else side - 1
                    left = left_activity[done[r][c - 1]] if c else side - 1
                    channel = (first + start + lane) % channels
                    row = frequencies[context_map[channel * side * side + top * side + left]]
                    s = done[r][c]
                    steps += steps_of(lane, row, s)
    return write_steps(steps, lanes), lanes


def lanes_of(planes: int, symbols: int) -> int:
    """The lanes the encoder chooses."""
    lanes = 1
    while lanes < 8 and 2 * lanes <= planes and symbols >= 1024 * 2 * lanes:
        lanes *= 2
    return lanes


def steps_of(lane: int, row, s: int) -> list[tuple[int, int, int]]:
    """What is decoded for symbol s from a table's row: (lane, frequency, cumulative) once, or twice with an escape."""
    if row[s]:
        return [(lane, row[s], sum(row[:s]))]
    return [(lane, row[-1], 4096 - row[-1]), (lane, 16, 16 * s)]


def write_steps(steps: list[tuple[int, int, int]], lanes: int) -> bytes:
    """The payload from which these steps are decoded, in their order; they are coded from the last to the first."""
    return pack_states(*code_steps([(lane, range(c, c + f)) for lane, f, c in steps], [2**15] * lanes))


def code_steps(steps: list[tuple[int, Sequence[int]]], x: list[int]) -> tuple[list[int], list[int]]:
    """The states after coding (lane, slots of the symbol) of each step, and the words, the last one first."""
    words = []
    for lane, slots in reversed(steps):
        f = len(slots)
        if x[lane] >= f * 2**19:
            words.append(x[lane] % 2**16)
            x[lane] //= 2**16
        x[lane] = x[lane] // f * 4096 + slots[x[lane] % f]
    return x, words


def write_predictive(planes, point, spec, first: int = 0, lanes: int | None = None) -> tuple[bytes, int]:
    """Coder 4. Returns payload and lanes, ours by default."""
    if lanes is None:
        lanes = lanes_of(len(planes), len(planes) * len(planes[0]) * len(planes[0][0]))
    return write_steps(predictive_steps(planes, point, spec, first, lanes), lanes), lanes


def predictive_steps(planes, point, spec, first: int, lanes: int) -> list[tuple[int, int, int]]:
    """What coder 4 codes, in the order of decoding: (lane, frequency, cumulative)."""
    prediction = Prediction(point, spec)
    channels = prediction.channels
    images: dict[int, dict[int, list[list[int]]]] = {}
    for k, plane in enumerate(planes, first):
        images.setdefault(k // channels, {})[k % channels] = plane
    steps = []
    for k, r, c, lane in prediction.steps(len(planes), first, lanes):
        image, channel = images[(first + k) // channels], (first + k) % channels
        steps += steps_of(lane, prediction.rows[prediction.table(image, channel, r, c)], planes[k][r][c])
    return steps


def write_binary(planes, point, spec, first: int = 0, lanes: int | None = None) -> tuple[bytes, int]:
    """Coder 2. Returns payload and lanes (1)."""
    n = len(point["quantizer"]["levels"])
    low, r, passes = 0, 2**32, 0
    a, b = [2**15] * (n - 1), [2**15] * (n - 1)
    for q in (q for plane in planes for row in plane for q in row):
        for k in range(min(q + 1, n - 1)):
            bound = r * ((a[k] + b[k]) // 2) // 2**16
            if k < q:
                r = bound
                a[k] += (2**16 - a[k]) // 2**3
                b[k] += (2**16 - b[k]) // 2**6
            else:
                low, r = low + bound, r - bound
                a[k] -= a[k] // 2**3
                b[k] -= b[k] // 2**6
            while r < 2**24:
                low, r, passes = 2**8 * low, 2**8 * r, passes + 1
    return (-(-low // 2**24)).to_bytes(passes + 1, "big"), 1


def write_coefficients(planes, point, spec, first: int = 0, lanes: int | None = None) -> tuple[bytes, int]:
    """Coder 5. planes: images of tiles of integers q. Returns payload and lanes, ours by default."""
    symbols, lanes = coefficient_symbols(planes, Coefficients(spec, point["step"]), lanes, row_slots)
    x, words = code_steps([(n % lanes, slots) for n, slots in enumerate(symbols)], [2**15] * lanes)
    return bytes([point["step"]]) + pack_states(x, words), lanes


def write_terse(planes, point, spec, first: int = 0, lanes: int | None = None) -> tuple[bytes, int]:
    """Coder 6, the same. point["usual"]: the operating point's step, where it is another."""
    step = point["step"]
    symbols, lanes = coefficient_symbols(planes, Coefficients(spec, step), lanes, spread_slots)
    head = range(3968) if step == point.get("usual", step) else range(3968 + step, 3969 + step)
    steps = [(0, head), *((n % lanes, slots) for n, slots in enumerate(symbols))]
    x, words = code_steps(steps, [2**15 if lanes > 1 else 0] * lanes)
    payload = pack_states(x, words)
    if lanes == 1:
        state = x[0].to_bytes((x[0].bit_length() + 7) // 8, "big")
        # the bytes of a word are swapped; of a word of one byte there is nothing to swap
        odd = len(state) % 2
        payload = state[:odd] + b"".join(state[i : i + 2][::-1] for i in range(odd, len(state), 2)) + payload[4:]
    return payload, lanes


def row_slots(row) -> list[Sequence[int]]:
    """Of each symbol of a table its slots."""
    return [range(sum(row[:s]), sum(row[: s + 1])) for s in range(len(row))]


def spread_slots(row) -> list[Sequence[int]]:
    """The same of coder 6."""
    found: list[list[int]] = [[] for _ in row]
    for slot, (s, _) in enumerate(spread(row)):
        found[s].append(slot)
    return list(found)


def pack_states(x: list[int], words: list[int]) -> bytes:
    """The states, then the words."""
    for state in reversed(x):
        words = [*words, state % 2**16, state // 2**16]
    return struct.pack(f"<{len(words)}H", *reversed(words))


def coefficient_symbols(planes, coding, lanes: int | None, slots_of) -> tuple[list[Sequence[int]], int]:
    """The slots of each symbol of the sequence in section 7, and the lanes, ours by default."""
    tables = [slots_of(row) for row in coding.rows]
    sequence: list[list[Sequence[int]]] = [[], [], []]  # the three parts
    for image, tile, group in coding.groups(len(planes)):
        values = [planes[image][tile][k] for k in group]
        zero = coding.zero[coding.tables[group[0]]]
        sequence[0].append(range(zero, 4096) if any(values) else range(zero))
        for k, q in zip(group, values, strict=True) if any(values) else ():
            slots = tables[coding.tables[k]]
            z = 2 * q - 1 if q > 0 else -2 * q
            s = z if z < 31 and slots[z] else 31
            sequence[1].append(slots[s])
            if s == 31:
                sequence[2] += [range(16 * b, 16 * b + 16) for b in (z % 256, z // 256)]
    symbols = [symbol for part in sequence for symbol in part]
    if lanes is None:
        lanes = next(n for n in (8, 4, 2, 1) if n == 1 or len(symbols) >= 4096 * n)
    return symbols, lanes


ENCODERS = {1: write_rans, 2: write_binary, 4: write_predictive, 5: write_coefficients, 6: write_terse}
