from __future__ import annotations

import pytest

from bedstone.model.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5",
        "0s",
        "0.0h",
        "-1s",
        "5 s",
        "5S",
        "1h30m",
        "1e3s",
        "5s\n",
        "\N{ARABIC-INDIC DIGIT FIVE}s",
        ".5s",
        "5.s",
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "MB", "5", "0MB", "-1MB", "5 MB", "5mb", "5Mi", "5MB\n"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2s", 2.0), ("1.5s", 1.5), ("5m", 300.0), ("1h", 3600.0), ("0.5h", 1800.0)],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1B", 1),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("256MiB", 256 << 20),
        ("1GB", 10**9),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes_are_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("value", [5, 2.5, None, True, ["5s"]])
def test_what_is_no_string_is_left_to_the_type(value: object) -> None:
    assert parse_duration(value) is value
    assert parse_size(value) is value


@pytest.mark.parametrize("text", ["500ms", "2s", "1.5s", "5m", "1h", "90s", "0.5ms"])
def test_a_duration_is_written_as_short_as_it_can_be(text: str) -> None:
    assert parse_duration(format_duration(parse_duration(text))) == parse_duration(text)
    assert len(format_duration(parse_duration(text))) <= len(text)


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1"), (1000, "1000"), (1024, "1KiB"), (3 << 29, "1536MiB")]
)
def test_a_size_is_written_exactly(size: int, text: str) -> None:
    assert format_size(size) == text
