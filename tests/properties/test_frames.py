"""The codec of frames, and both ends of a stream of them, against plain dictionaries."""

from __future__ import annotations

import contextlib
import math
import struct
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bedstone.errors import InvalidError
from bedstone.telemetry.frame_builder import FrameBuilder, Received
from bedstone.telemetry.frames import Frame, Series, decode, encode

words = st.text(min_size=1, max_size=6)
labels = st.dictionaries(words, st.text(max_size=6), max_size=4).map(
    lambda it: tuple(sorted(it.items()))
)
series = st.builds(
    Series,
    name=words,
    labels=labels,
    kind=st.sampled_from(["counter", "gauge"]),
    source=st.sampled_from(["envoy", "node", "instance/bank/default/web-1"]),
)
numbers = st.integers(0, 300) | st.integers(0, (1 << 32) - 1)
frames = st.builds(
    Frame,
    second=st.integers(-1, 1 << 62),
    sequence=st.integers(0, (1 << 32) - 1),
    new=st.dictionaries(numbers, series, max_size=5),
    gone=st.lists(numbers, unique=True, max_size=5).map(lambda it: tuple(sorted(it))),
    incarnations=st.dictionaries(words, words, max_size=3),
    values=st.dictionaries(numbers, st.floats() | st.integers(0, 99).map(float), max_size=60),
    missing=st.dictionaries(words, words, max_size=3),
)


def bits(frame: Frame) -> dict[int, bytes]:
    return {number: struct.pack("<d", value) for number, value in frame.values.items()}


@given(frames)
def test_a_frame_comes_back_bit_by_bit(frame: Frame) -> None:
    back = decode(encode(frame))
    assert replace(back, values={}) == replace(frame, values={})
    assert bits(back) == bits(frame)


@given(frames, st.data())
def test_damaged_bytes_are_refused_or_make_another_frame_and_never_crash(
    frame: Frame, data: st.DataObject
) -> None:
    encoded = bytearray(encode(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    for damaged in (bytes(encoded), bytes(encoded[:cut]), bytes(encoded) + b"x"):
        try:
            back = decode(damaged)
        except InvalidError:
            continue
        assert bits(decode(encode(back))) == bits(back)


@given(st.binary(max_size=60))
def test_random_bytes_never_crash(data: bytes) -> None:
    for head in (b"", b"\x01\x00", b"\x01\x01"):
        with contextlib.suppress(InvalidError):
            decode(head + data)


@given(frames)
def test_no_shorter_frame_is_taken_for_a_whole_one(frame: Frame) -> None:
    encoded = encode(frame)
    for cut in range(len(encoded)):
        try:
            decode(encoded[:cut])
        except InvalidError:
            continue
        raise AssertionError(f"taken at {cut} of {len(encoded)}")


@dataclass
class _Source:
    life: int
    values: dict[Series, float]


class Stream(RuleBasedStateMachine):
    """Whatever happens at the sender, the receiver knows what the sender saw."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, _Source] = {}
        self.builder = FrameBuilder()
        self.received = Received()
        self.missing: dict[str, str] = {}
        self.second = 0

    @rule(
        source=st.sampled_from("abc"),
        name=st.sampled_from("xyz"),
        value=st.floats(0, allow_nan=False),
    )
    def count(self, source: str, name: str, value: float) -> None:
        it = self.sources.setdefault(source, _Source(0, {}))
        it.values[Series(name, (), "counter", source)] = value

    @rule(source=st.sampled_from("abc"))
    def begin_anew(self, source: str) -> None:
        life = self.sources[source].life + 1 if source in self.sources else 0
        self.sources[source] = _Source(life, {})

    @rule(source=st.sampled_from("abc"))
    def end(self, source: str) -> None:
        self.sources.pop(source, None)

    @rule(source=st.sampled_from("abc"), name=st.sampled_from("xyz"))
    def lose(self, source: str, name: str) -> None:
        if source in self.sources:
            self.sources[source].values.pop(Series(name, (), "counter", source), None)

    @rule(missing=st.sets(st.sampled_from("abc")), lost=st.booleans(), restart=st.booleans())
    def tick(self, missing: set[str], *, lost: bool, restart: bool) -> None:
        if restart:
            self.builder = FrameBuilder()
        self.missing = {source: "late" for source in missing if source in self.sources}
        frame = self.build(full=False)
        if lost and frame.sequence:
            frame = self.build(full=False)
            assert not self.received.apply(decode(encode(frame)))
            frame = self.build(full=True)
        assert self.received.apply(decode(encode(frame)))

    def build(self, *, full: bool) -> Frame:
        self.second += 1
        values = {
            series: value
            for source in self.sources.values()
            for series, value in source.values.items()
        }
        lives = {source: str(it.life) for source, it in self.sources.items()}
        return self.builder.build(self.second, values, lives, self.missing, full=full)

    @invariant()
    def the_same_is_known(self) -> None:
        if self.received.second != self.second or not self.second:
            return
        # What happened since the last frame is not known; run the check through a frame of its own.
        self.missing = {
            source: why for source, why in self.missing.items() if source in self.sources
        }
        assert self.received.apply(self.build(full=False))
        seen = {name: it for name, it in self.sources.items() if name not in self.missing}
        assert self.received.current() == {
            series: value for it in seen.values() for series, value in it.values.items()
        }
        for name, it in seen.items():
            assert self.received.incarnations[name] == str(it.life)
        assert self.received.missing == self.missing


TestStream = Stream.TestCase


def test_a_value_that_stays_is_not_sent_again() -> None:
    builder = FrameBuilder()
    one = Series("one", (), "counter", "envoy")
    two = Series("two", (), "counter", "envoy")
    builder.build(1, {one: 5.0, two: 7.0}, {"envoy": "a"}, {})
    assert builder.build(2, {one: 5.0, two: 8.0}, {"envoy": "a"}, {}).values == {1: 8.0}


def test_a_source_that_began_anew_tells_every_value_again() -> None:
    builder = FrameBuilder()
    one = Series("one", (), "counter", "envoy")
    builder.build(1, {one: 5.0}, {"envoy": "a"}, {})
    frame = builder.build(2, {one: 5.0}, {"envoy": "b"}, {})
    assert (frame.values, frame.incarnations) == ({0: 5.0}, {"envoy": "b"})


def test_ten_thousand_unchanged_series_cost_a_few_bytes() -> None:
    builder = FrameBuilder()
    values = {
        Series("n", (("i", str(number)),), "counter", "envoy"): math.pi * number
        for number in range(10_000)
    }
    builder.build(1, values, {"envoy": "a"}, {})
    assert len(encode(builder.build(2, values, {"envoy": "a"}, {}))) < 100
