"""Files of pictures that Pillow does not write: PNGs of any depth, grey TIFFs of 4 bits, PGMs."""

from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE = 0, 2, 3


def packed_rows(pixels: np.ndarray, bits: int) -> list[bytes]:
    """The bytes of each row of (H, W), most significant bits first."""
    rows = []
    for row in pixels.astype(np.int64):
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return rows


def png(pixels: np.ndarray, bits: int, kind: int = GREY) -> bytes:
    """A PNG of (H, W) or, in colour, (H, W, 3); a palette has as many colours as the values have.

    Colour k of the palette is (k, 2 k, 3 k) modulo 256.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    colours = bytes(k * c % 256 for k in range(2 ** min(bits, 8)) for c in (1, 2, 3))
    rows = packed_rows(pixels.reshape(height, -1), bits)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"PLTE", colours) if kind == PALETTE else b"",
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            chunk(b"IEND", b""),
        ]
    )


def tiff(pixels: np.ndarray, bits: int) -> bytes:
    """An uncompressed grey TIFF of (H, W)."""
    height, width = pixels.shape
    data = b"".join(packed_rows(pixels, bits))
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags[279] = len(data)
    offset = 8 + len(data) + len(data) % 2
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, offset) + data.ljust(offset - 8, b"\0") + directory


def pgm(pixels: np.ndarray, highest: int, plain: bool = False) -> bytes:
    """A PGM of (H, W) whose white is `highest`; plain: in decimal text."""
    height, width = pixels.shape
    header = f"{'P2' if plain else 'P5'} {width} {height} {highest}\n".encode()
    if plain:
        return header + " ".join(map(str, pixels.flatten())).encode() + b"\n"
    return header + pixels.astype(">u2" if highest > 255 else np.uint8).tobytes()
