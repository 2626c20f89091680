from __future__ import annotations

import gzip
import hashlib
import random
from pathlib import Path

import pytest

from bedstone.errors import InvalidError, VerificationError
from bedstone.images.lazy.making import Layer, index
from bedstone.images.lazy.spans import SPACING, Reading, Spans
from bedstone.testing.layers import entry, tar

RANDOM = random.Random(1)
WORDS = [RANDOM.randbytes(RANDOM.randint(2, 12)) for _ in range(5000)]


def text(words: int) -> bytes:
    return b"".join(RANDOM.choices(WORDS, k=words))


LONG, SHORT = text(700_000), text(10)


def points(path: Path, plain: bytes) -> tuple[Spans, list[bytes]]:
    windows: list[bytes] = []

    def keep(window: bytes) -> int:
        windows.append(window)
        return len(windows) - 1

    with Reading(path, path.parent) as reading:
        assert reading.buffered().read() == plain
        return reading.finish(keep), windows


@pytest.mark.parametrize(
    "members",
    [
        [LONG],
        [SHORT],
        [b""],
        [SHORT, SHORT],
        [LONG, SHORT, LONG],
        [LONG, b"", LONG],
        [RANDOM.randbytes(3 * SPACING)],
        # Stored blocks, which begin at whole bytes, behind points that do not.
        [b"".join(text(RANDOM.randrange(9000)) + RANDOM.randbytes(90_000) for _ in range(90))],
    ],
    ids=[
        "long",
        "short",
        "empty",
        "two short",
        "three",
        "empty between",
        "incompressible",
        "mixed",
    ],
)
def test_every_span_is_had_from_its_own_bytes_alone(tmp_path: Path, members: list[bytes]) -> None:
    path, plain = tmp_path / "layer", b"".join(members)
    packed = b"".join(gzip.compress(member) for member in members)
    path.write_bytes(packed)
    made, windows = points(path, plain)
    spans = Spans.decode(made.encode())
    got = b""
    for span in range(len(spans.points)):
        begin, end = spans.bounds(span)
        assert spans.start(span) == len(got)
        window = spans.points[span].window
        got += spans.inflate(span, packed[begin:end], windows[window] if window >= 0 else b"")
    assert got == plain
    assert spans.plain == len(plain)
    for offset in (0, len(plain) // 2, max(len(plain) - 1, 0)):
        assert spans.start(spans.find(offset)) <= offset
    if len(plain) > 4 * SPACING:
        assert len(spans.points) >= 3


def test_other_bytes_are_refused_or_differ_and_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    packed = gzip.compress(LONG)
    path.write_bytes(packed)
    spans, windows = points(path, LONG)
    begin, end = spans.bounds(1)
    for position in range(0, end - begin, 5000):
        damaged = bytearray(packed[begin:end])
        damaged[position] ^= 0x55
        try:
            assert len(spans.inflate(1, bytes(damaged), windows[0])) <= 2 * SPACING
        except InvalidError:
            continue


def test_a_damaged_layer_is_refused_when_it_is_indexed(tmp_path: Path) -> None:
    content = tar([entry("file", LONG)])
    packed = bytearray(gzip.compress(content))
    packed[len(packed) // 2] ^= 1
    path = tmp_path / "layer"
    path.write_bytes(packed)
    right = f"sha256:{hashlib.sha256(content).hexdigest()}"
    with pytest.raises((InvalidError, VerificationError)):
        index([Layer(right, path, "gzip", right)], lambda _: right, tmp_path)


@pytest.mark.parametrize("data", [b"", b"other", b"BDSSPAN2", b"BDSSPAN2" + bytes(40)])
def test_what_are_no_points_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        Spans.decode(data)
