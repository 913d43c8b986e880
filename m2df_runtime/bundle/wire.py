"""Messages of Google's Protocol Buffers, in which ONNX files are written: walked field by field, and written.

The runtime has no protobuf library and needs none.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Buffer = bytes | mmap.mmap
Field = tuple[int, int, int, int]
"""Number, wire type, and value of a number, or where its bytes begin; their end."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(content: Buffer, position: int, end: int) -> Iterator[Field]:
    """The fields of one message."""
    while position < end:
        tag, position = _number(content, position, end, 5)
        number, wire = tag >> 3, tag & 7
        if wire == BYTES:
            length, position = _number(content, position, end, 5)
            yield number, wire, position, position + length
            position += length
        elif wire == VARINT:
            value, position = _number(content, position, end, 10)
            yield number, wire, value, position
        elif wire in (FIXED32, FIXED64):
            yield number, wire, position, position + (4 if wire == FIXED32 else 8)
            position += 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"is not an ONNX model: a field of wire type {wire}")
        if position > end or not number:
            raise ValueError("is not an ONNX model: it is cut or damaged")


def _number(content: Buffer, position: int, end: int, longest: int) -> tuple[int, int]:
    """A number of variable length in its shortest spelling, and where it ends.

    ONNX Runtime drops the bits of a tag beyond 32, so 8a 80 80 80 10 is 0a to it: longer spellings are refused.
    """
    value = shift = 0
    while position < end:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if (byte == 0 and shift) or (longest == 5 and value >> 32):
                raise ValueError("is not an ONNX model: a number is spelled in more bytes than it needs")
            return value, position
        shift += 7
        if shift >= 7 * longest:
            break
    raise ValueError("is not an ONNX model: it is cut or damaged")


def message(number: int, content: bytes) -> bytes:
    """A field that holds a message or a text."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A number of variable length."""
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*low, value])
