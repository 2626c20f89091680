"""Frames: what a node's collector says of one second, and their encoding.

A frame carries only what changed since the frame before it, so its size follows the change.

Rules:
- A frame of sequence 0 replaces everything that was known of the node. Any other follows the frame
  with the sequence before it; a receiver that has missed one asks for a frame of sequence 0.
- A value that is not given has not changed. Of a source that began anew, every value is given.
- A series is gone when its source, asked, has it no more. If it comes again, it is new, and its
  counter began at zero.
- A counter's value is what its source counted since the source itself began (its *incarnation*).
  When the incarnation of a source changes, its counters began anew at zero.
- A source that did not answer in time is named in `missing`: the second is incomplete. Its values
  are simply not there, and come with the next second that it answers.
"""

from __future__ import annotations

import itertools
import json
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from bedstone.errors import InvalidError

Labels = tuple[tuple[str, str], ...]
"""Label pairs, sorted by name, without the metric's name."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a node.

    Args:
        name: the metric's (`…_bucket`, `…_sum`, `…_count` for a histogram's).
        labels: its labels.
        kind: what its values mean.
        source: what counts it and begins anew as one: `envoy`, `node`, `instance/APP/CELL/…`.
    """

    name: str
    labels: Labels
    kind: Literal["counter", "gauge"]
    source: str
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Each is looked up every second: hashing the labels once is most of that cost.
        object.__setattr__(self, "_hash", hash((self.name, self.labels, self.kind, self.source)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Frame:
    """What a node says of one second.

    Args:
        second: since the epoch; the values are as of its end.
        sequence: 0 for a complete frame, else one more than the frame before.
        new: series seen for the first time, by a number of the sender's that stands for no other
            series until the next complete frame.
        gone: numbers of series that exist no more.
        incarnations: for each source that is new or began anew, what tells its lives apart.
        values: by number, those that changed.
        missing: for each source that did not answer, why.
    """

    second: int
    sequence: int
    new: Mapping[int, Series] = field(default_factory=dict)
    gone: tuple[int, ...] = ()
    incarnations: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


# The encoding: one byte of version, one that says whether the rest is deflated (RFC 1950), then
# `_HEAD` and the parts that it gives the lengths of. All little-endian. Numbers ascend, and each is
# written as its distance from the one before; values are written byte by byte of all of them (every
# first byte, every second byte …), since neighbours share their high bytes.
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<qIIII")  # second, sequence, length of the text, |gone|, |values|
_LIMIT: Final = 64 << 20
_WORTH: Final = 200
_SWAP: Final = sys.byteorder == "big"


def encode(frame: Frame) -> bytes:
    """A frame as bytes; equal frames have equal bytes."""
    text = json.dumps(
        [
            [
                [number, it.name, it.kind, it.source, *itertools.chain.from_iterable(it.labels)]
                for number, it in sorted(frame.new.items())
            ],
            dict(frame.incarnations),
            dict(frame.missing),
        ],
        separators=(",", ":"),
        sort_keys=True,
    ).encode()
    numbers = sorted(frame.values)
    values = _bytes(array("d", [frame.values[number] for number in numbers]))
    body = b"".join(
        (
            _HEAD.pack(frame.second, frame.sequence, len(text), len(frame.gone), len(numbers)),
            text,
            _steps(sorted(frame.gone)),
            _steps(numbers),
            *(values[byte::8] for byte in range(8)),
        )
    )
    if len(body) >= _WORTH:
        deflated = zlib.compress(body, 1)
        if len(deflated) < len(body):
            return bytes((_VERSION, 1)) + deflated
    return bytes((_VERSION, 0)) + body


def decode(data: bytes) -> Frame:
    """What `encode` made.

    Raises:
        InvalidError: it is no frame, of another version, damaged, or larger than 64 MiB.
    """
    if len(data) < 2 or data[0] != _VERSION:
        raise _malformed(f"version {data[0] if data else None}, expected {_VERSION}")
    body = data[2:] if data[1] == 0 else _inflate(data[2:])
    try:
        second, sequence, length, gone, count = _HEAD.unpack_from(body)
    except struct.error as error:
        raise _malformed("no header") from error
    parts = [_HEAD.size, length, 4 * gone, 4 * count, 8 * count]
    edges = list(itertools.accumulate(parts))
    if edges[-1] != len(body):
        raise _malformed(f"{len(body)} bytes, expected {edges[-1]}")
    text, gone_steps, steps, planes = (body[begin:end] for begin, end in itertools.pairwise(edges))
    values = bytearray(len(planes))
    for byte in range(8):
        values[byte::8] = planes[byte * count : (byte + 1) * count]
    new, incarnations, missing = _parse(text)
    return Frame(
        second=second,
        sequence=sequence,
        new=new,
        gone=tuple(_numbers(gone_steps)),
        incarnations=incarnations,
        values=dict(zip(_numbers(steps), _array("d", values), strict=True)),
        missing=missing,
    )


def _parse(text: bytes) -> tuple[dict[int, Series], dict[str, str], dict[str, str]]:
    try:
        parsed: Any = json.loads(text)
        rows, incarnations, missing = parsed
        new = {_number(number): _series(*rest) for number, *rest in rows}
        return new, _texts(incarnations), _texts(missing)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _malformed("a text that is not understood") from error


def _series(name: str, kind: str, source: str, *labels: str) -> Series:
    if not all(isinstance(text, str) for text in (name, kind, source, *labels)) or not name:
        raise TypeError
    match kind:
        case "counter" | "gauge":
            pairs = tuple(zip(labels[::2], labels[1::2], strict=True))
            if any(a[0] >= b[0] for a, b in itertools.pairwise(pairs)):
                raise ValueError
            return Series(name, pairs, kind, source)
        case _:
            raise ValueError


def _texts(mapping: dict[str, str]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in mapping.values()):
        raise TypeError
    return mapping


def _number(number: int) -> int:
    if type(number) is not int or not 0 <= number < 1 << 32:
        raise ValueError
    return number


def _steps(numbers: Sequence[int]) -> bytes:
    return _bytes(
        array("I", [b - a for a, b in itertools.pairwise(itertools.chain((0,), numbers))])
    )


def _numbers(steps: bytes) -> Iterator[int]:
    numbers = list(itertools.accumulate(_array("I", steps)))
    if numbers and numbers[-1] >= 1 << 32:
        raise _malformed("a number beyond 32 bits")
    if any(a == b for a, b in itertools.pairwise(numbers)):
        raise _malformed("a number twice")
    return iter(numbers)


def _bytes(values: array[Any]) -> bytes:
    if _SWAP:
        values.byteswap()
    return values.tobytes()


def _array(code: Literal["I", "d"], data: bytes | bytearray) -> Iterable[Any]:
    values: array[Any] = array(code)
    values.frombytes(data)
    if _SWAP:
        values.byteswap()
    return values


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(data, _LIMIT)
    except zlib.error as error:
        raise _malformed("damaged bytes") from error
    if not inflater.eof or inflater.unused_data:
        raise _malformed(f"bytes that end too early, or more than {_LIMIT}")
    return body


def _malformed(what: str) -> InvalidError:
    return InvalidError(
        f"got a malformed frame of series: {what}",
        hint="run the same version of bedstone on the server and on its nodes",
    )
