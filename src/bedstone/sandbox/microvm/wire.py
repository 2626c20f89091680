"""Frames between the host and a guest's agent. Pure; docs/reference/agent-protocol.md has it all.

A frame is `length: u32`, `kind: u8`, `id: u32` and `length - 5` bytes of payload, little endian.
What comes from a guest is not to be trusted: a length out of bounds is refused before memory is
taken.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from bedstone.errors import UnavailableError

VERSION: Final = 1
MAX_PAYLOAD: Final = 256 * 1024
CHUNK: Final = 32 * 1024
"""Most bytes that one data frame carries from here."""
WINDOW: Final = 128 * 1024
"""What either side may send on a channel before it was granted more."""

_HEADER: Final = struct.Struct("<IBI")
_WINDOW: Final = struct.Struct("<BI")


class Kind(enum.IntEnum):
    """What a frame is."""

    HELLO = 0
    REQUEST = 1
    RESULT = 2
    ERROR = 3
    DATA = 4
    WINDOW = 5
    EVENT = 6


@dataclass(frozen=True, slots=True)
class Frame:
    """One message; `id` is the request's that it belongs to."""

    kind: Kind
    id: int
    payload: bytes


def encode(kind: Kind, id: int, payload: bytes = b"") -> bytes:  # noqa: A002 - the protocol's word
    """The frame's bytes."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"got {len(payload)} bytes, expected at most {MAX_PAYLOAD}")
    return _HEADER.pack(len(payload) + 5, kind, id) + payload


def window(id: int, channel: int, count: int) -> bytes:  # noqa: A002
    """The frame that grants `count` more bytes on a channel."""
    return encode(Kind.WINDOW, id, _WINDOW.pack(channel, count))


def read_window(payload: bytes) -> tuple[int, int]:
    """Channel and count of a window frame.

    Raises:
        UnavailableError: the guest does not speak this protocol.
    """
    if len(payload) != _WINDOW.size:
        raise UnavailableError(f"the guest's agent sent a window of {len(payload)} bytes")
    channel, count = _WINDOW.unpack(payload)
    return channel, count


class Decoder:
    """Takes bytes as they come and gives frames; holds at most one frame and one read's bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now.

        Raises:
            UnavailableError: no frame begins so; nothing later can be read.
        """
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            length, kind, number = _HEADER.unpack_from(self._buffer, start)
            if not 5 <= length <= MAX_PAYLOAD + 5:
                raise UnavailableError(f"the guest's agent sent a frame of {length} bytes")
            if kind not in Kind._value2member_map_:
                raise UnavailableError(f"the guest's agent sent a frame of kind {kind}")
            if len(self._buffer) - start < 4 + length:
                break
            payload = bytes(self._buffer[start + _HEADER.size : start + 4 + length])
            frames.append(Frame(Kind(kind), number, payload))
            start += 4 + length
        del self._buffer[:start]
        return frames
