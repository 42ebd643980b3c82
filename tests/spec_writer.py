"""An encoder written from docs/bitstream.md alone, in plain Python integers: the slow oracle beside spec_reader.py.

No numpy, no Numba, nothing of splitwire: its bytes are compared with the coder's. Do not make it share code with
`codec/`.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib

from spec_reader import fingerprint_of


def write_frame(profile_text: str, op: int, frame_id: int, batch: int, tensors, chunks) -> tuple[bytes, int]:
    """The frame, and how many symbols were escaped.

    tensors: per tensor its elements in C order, with the batch. chunks: (tensor, lanes, planes) of each, in order.
    """
    profile = json.loads(profile_text)
    table, payloads, escapes = b"", b"", 0
    position = [0] * len(tensors)
    for tensor, lanes, count in chunks:
        point = profile["operating_points"][op]["tensors"][tensor]
        channels, height, width = ([1, 1] + profile["tensors"][tensor]["shape"])[-3:]
        size = height * width
        start, first = position[tensor] * size, position[tensor]
        values = tensors[tensor][start : start + count * size]
        thresholds = point["quantizer"]["thresholds"]
        q = [sum(t <= y for t in thresholds) for y in values]
        planes = [[q[p * size + r * width :][:width] for r in range(height)] for p in range(count)]
        payload, escaped = write_chunk(planes, point, channels, lanes, first)
        table += struct.pack("<BBBBIII", tensor, 1, lanes, 0, count, len(payload), zlib.crc32(payload))
        payloads += payload
        position[tensor] += count
        escapes += escaped
    fingerprint = fingerprint_of(profile_text)
    head = struct.pack("<4sBBBB8sIHH", b"SPLW", 1, 0, 0, op, fingerprint, frame_id, batch, len(chunks)) + table
    return head + struct.pack("<I", zlib.crc32(head)) + payloads, escapes


def write_chunk(planes, point, channels: int, lanes: int, first: int) -> tuple[bytes, int]:
    """Payload of these planes of level indices, and how many symbols were escaped."""
    n = len(point["quantizer"]["levels"])
    tables = point["tables"]
    bh, bw = tables["block"]
    side = tables["activities"] + 1
    left_activity, top_activity, context_map, raw = (
        base64.b64decode(tables[name]) for name in ("left_activity", "top_activity", "context_map", "frequencies")
    )
    k = n ** (bh * bw)
    frequencies = [struct.unpack_from(f"<{k + 1}H", raw, i) for i in range(0, len(raw), 2 * (k + 1))]
    blocks = [to_blocks(plane, bh, bw, n, tables["padding"]) for plane in planes]
    # What the decoder will read, in its order: (lane, frequency, cumulative); then coded from the last to the first.
    steps, escapes = [], 0
    for start in range(0, len(planes), lanes):
        group = range(min(lanes, len(planes) - start))
        for r in range(len(blocks[0])):
            for c in range(len(blocks[0][0])):
                for lane in group:
                    done = blocks[start + lane]
                    top = top_activity[done[r - 1][c]] if r else side - 1
                    left = left_activity[done[r][c - 1]] if c else side - 1
                    channel = (first + start + lane) % channels
                    row = frequencies[context_map[channel * side * side + top * side + left]]
                    s = done[r][c]
                    if row[s]:
                        steps.append((lane, row[s], sum(row[:s])))
                    else:
                        steps += [(lane, row[k], sum(row[:k])), (lane, 16, 16 * s)]
                        escapes += 1
    x, words = [2**15] * lanes, []
    for lane, f, cumulative in reversed(steps):
        if x[lane] >= f * 2**19:
            words.append(x[lane] % 2**16)
            x[lane] //= 2**16
        x[lane] = x[lane] // f * 4096 + cumulative + x[lane] % f
    states = [word for state in x for word in (state // 2**16, state % 2**16)]
    return struct.pack(f"<{len(states) + len(words)}H", *states, *reversed(words)), escapes


def to_blocks(plane, bh: int, bw: int, n: int, padding: int):
    """Rows of block symbols; what a block covers outside the plane is `padding`."""
    height, width = len(plane), len(plane[0])

    def at(y: int, x: int) -> int:
        return plane[y][x] if y < height and x < width else padding

    return [
        [
            sum(at(r * bh + k // bw, c * bw + k % bw) * n**k for k in range(bh * bw))
            for c in range(-(-width // bw))
        ]
        for r in range(-(-height // bh))
    ]  # fmt: skip
