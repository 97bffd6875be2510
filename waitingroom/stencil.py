"""Texts that are the same for everybody but for a few holes, and gzip streams of them at next to no cost.

The static parts are deflated once. A stream is those blocks, with the holes between them stored as they are:
it costs a copy and a checksum, not a compression.
"""

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

_HOLE = re.compile("\0([a-z_]+)\0")
_WORTH_DEFLATING = 300
_STORED_LIMIT = 65535
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_DEFLATE_END = b"\x03\x00"


def hole(name: str) -> str:
    """Return what stands in a text for the value `name`."""
    return f"\0{name}\0"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Static text, the same deflated to a byte boundary (empty if not worth it), and the hole behind."""

    plain: bytes
    packed: bytes
    hole: str


class Stencil:
    """A text with holes.

    Args:
        text: the text, with `hole(name)` wherever the value `name` belongs.
    """

    def __init__(self, text: str) -> None:
        *parts, tail = _HOLE.split(text)
        statics = [part.encode() for part in parts[::2]]
        self._pieces = [
            _Piece(plain, _pack(plain), name) for plain, name in zip(statics, parts[1::2], strict=True)
        ]
        self._tail = _Piece(tail.encode(), _pack(tail.encode()), "")

    def fill(self, values: Mapping[str, bytes]) -> bytes:
        """Put `values` into the holes.

        Raises:
            KeyError: a hole has no value.
        """
        parts = [part for piece in self._pieces for part in (piece.plain, values[piece.hole])]
        return b"".join((*parts, self._tail.plain))

    def gzip(self, values: Mapping[str, bytes]) -> bytes:
        """Put `values` into the holes and write the text as a gzip stream (RFC 1952).

        Raises:
            KeyError: a hole has no value.
        """
        stream, loose = [_GZIP_HEADER], b""
        for piece in (*self._pieces, self._tail):
            value = values[piece.hole] if piece.hole else b""
            if piece.packed:
                stream += (_stored(loose), piece.packed)
                loose = value
            else:
                loose += piece.plain + value
        plain = self.fill(values)
        stream += (_stored(loose), _DEFLATE_END, struct.pack("<II", zlib.crc32(plain), len(plain)))
        return b"".join(stream)


def _pack(plain: bytes) -> bytes:
    if len(plain) < _WORTH_DEFLATING:
        return b""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(plain) + deflater.flush(zlib.Z_FULL_FLUSH)


def _stored(plain: bytes) -> bytes:
    """Wrap text in deflate blocks that are not compressed (RFC 1951, section 3.2.4)."""
    chunks = (plain[at : at + _STORED_LIMIT] for at in range(0, len(plain), _STORED_LIMIT))
    return b"".join(struct.pack("<BHH", 0, len(chunk), len(chunk) ^ 0xFFFF) + chunk for chunk in chunks)
