"""`make edge-size`: what the edge install takes on an aarch64 device, by distribution, and what of it is not needed.

arm.py installs the wheel of this tree with the extra `edge` for aarch64 into build/arm/site-arm, as pip resolves it
with constraints.txt, without pip itself and without compiled bytecode. This module counts.

It fails if torch, onnx or scipy are there, or if the trimmed set is over 330 MB. `trim` does what docs/startup.md tells
a small device to do: no folders of tests, and no symbol tables, which only debuggers read.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path

MOST_MB = 330
FORBIDDEN = ("torch", "torchvision", "onnx", "onnx_ir", "scipy")
ELF = b"\x7fELF\x02\x01"
"""64 bits, little-endian."""


def distributions(site: Path, *, shipped: bool) -> dict[str, int]:
    """Name and version → bytes, largest first; bytecode does not count.

    shipped: of all files of the wheel, by its RECORD; else of the files that are there.
    """
    sizes = {}
    for info in site.glob("*.dist-info"):
        distribution = PathDistribution(info)
        files = [file for file in distribution.files or () if file.suffix != ".pyc"]
        if shipped:
            known = [file.size for file in files if file.size is not None]
            size = sum(known)
        else:
            there = (Path(str(file.locate())) for file in files)
            size = sum(file.stat().st_size for file in there if file.is_file())
        sizes[f"{distribution.metadata['Name']} {distribution.version}"] = size
    return dict(sorted(sizes.items(), key=lambda pair: -pair[1]))


def trim(site: Path) -> int:
    """Remove folders of tests and symbol tables; returns the bytes saved."""
    saved = 0
    for folder in [*site.glob("*/tests"), *site.glob("*/*/tests")]:
        saved += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shutil.rmtree(folder)
    for library in libraries(site):
        saved += strip(library)
    return saved


def libraries(site: Path) -> Iterator[Path]:
    """The shared libraries."""
    yield from (file for file in site.rglob("*.so*") if file.is_file())


def strip(library: Path) -> int:
    """Cut off what lies behind the last loaded byte, sections and symbol tables; returns the bytes saved.

    `strip --strip-unneeded` does nearly the same, and needs binutils for the device's architecture.
    """
    with library.open("r+b") as file:
        head = file.read(64)
        if head[:6] != ELF:
            return 0
        start, entry, count = (*struct.unpack_from("<Q", head, 32), *struct.unpack_from("<HH", head, 54))
        file.seek(start)
        programs = [struct.unpack_from("<IIQQQQ", file.read(entry)) for _ in range(count)]
        end: int = max(offset + size for _, _, offset, _, _, size in programs)
        before = file.seek(0, 2)
        if end >= before:
            return 0
        file.seek(40)
        file.write(bytes(8))  # the offset of the section headers
        file.seek(60)
        file.write(bytes(4))  # their number, and that of their names
        file.truncate(end)
    return before - end


def report(site: Path) -> int:
    """Print the sizes, trim, print the sum again; returns 1 if something forbidden is there, or too much is left."""
    sizes = distributions(site, shipped=True)
    whole = sum(sizes.values())
    for name, size in sizes.items():
        if size > 1e6:
            print(f"  {name:<32}{size / 1e6:7.1f} MB")
    print(f"  {'smaller ones':<32}{sum(size for size in sizes.values() if size <= 1e6) / 1e6:7.1f} MB")
    found = [name for name in FORBIDDEN if (site / name).exists()]
    trim(site)
    trimmed = sum(distributions(site, shipped=False).values())
    print(f"edge set on aarch64: {whole / 1e6:.0f} MB unpacked, {trimmed / 1e6:.0f} MB without tests and symbol tables")
    if found or trimmed > MOST_MB * 1e6:
        print(f"make edge-size: FAILED: {', '.join(found) or f'over {MOST_MB} MB'}")
        return 1
    return 0
