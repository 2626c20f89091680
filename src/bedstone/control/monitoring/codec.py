"""The columnar codec: a matrix of series by times to bytes, and back bit by bit.

A row is kept in the cheapest form that gives back the very same bits:

- *Scaled*: each value is a whole number divided by 10^k, 0 ≤ k ≤ 9. Counts, byte sizes, and times
  with few decimals are.
- *Bits*: the pattern of the double (IEEE 754) taken as a whole number. Any value is; of neighbours,
  the exponent and the first bits of the fraction are the same, so their difference is small.

Then: difference to the value before in time; of scaled rows also to the row before, where that
leaves less (buckets of one histogram move together); signs folded in (zigzag); as few bytes as the
largest needs, every first byte, then every second byte …; deflated (RFC 1950).

NaN is "no value": kept in a mask of bits, and filled from its left, so that it costs no difference.
Its payload is not kept.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bedstone.errors import InvalidError

Matrix = NDArray[np.float64]
Ids = NDArray[np.int64]

_HEAD: Final = struct.Struct("<BBHHH")  # version, flags, series, times, scaled series
_VERSION: Final = 1
_MASKED: Final = 1
_LEVEL: Final = 1  # of deflate; 6 takes up to twice the time for a twentieth fewer bytes
_EXACT: Final = float(1 << 53)
_DECIMALS: Final = 9
_POWERS: Final = 10.0 ** np.arange(_DECIMALS + 1)
_WIDTHS: Final = (np.uint8, np.uint16, np.uint32, np.uint64)


def pack(ids: Ids, values: Matrix) -> bytes:
    """Series and their values as bytes.

    Args:
        ids: shape (S,), ascending, not negative; S < 65,536.
        values: shape (S, T), T < 65,536.
    """
    series, times = values.shape
    valid = ~np.isnan(values)
    masked = not valid.all()
    filled = _filled(values, valid) if masked else values
    exponents = _exponents(filled)
    scaled = exponents >= 0
    numbers = np.rint(filled[scaled] * _POWERS[exponents[scaled], None]).astype(np.int64)
    patterns = np.ascontiguousarray(filled[~scaled]).view(np.int64)
    parts = [_folded(np.diff(ids, prepend=0)), exponents.tobytes()]
    if masked:
        parts.append(np.packbits(valid).tobytes())
    parts += [_differences(numbers, across=True), _differences(patterns, across=False)]
    head = _HEAD.pack(
        _VERSION, _MASKED if masked else 0, series, times, int(np.count_nonzero(scaled))
    )
    return head + zlib.compress(b"".join(parts), _LEVEL)


def unpack(data: bytes) -> tuple[Ids, Matrix]:
    """What `pack` was given.

    Raises:
        InvalidError: it is damaged, or of another version.
    """
    try:
        version, flags, series, times, scaled = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise _malformed(f"version {version}, expected {_VERSION}")
        reader = _Bytes(zlib.decompress(memoryview(data)[_HEAD.size :]))
        ids = np.cumsum(_unfolded(reader, series))
        exponents = np.frombuffer(reader.take(series), np.int8)
        valid = None
        if flags & _MASKED:
            packed = np.frombuffer(reader.take((series * times + 7) // 8), np.uint8)
            valid = np.unpackbits(packed, count=series * times).view(np.bool_)
        numbers = _sums(reader, scaled, times, across=True)
        patterns = _sums(reader, series - scaled, times, across=False)
        reader.end()
        values = np.empty((series, times))
        rows = exponents >= 0
        if rows.all():
            values[:] = numbers
        else:
            values[rows] = numbers
            values[~rows] = patterns.view(np.float64)
        decimal = np.flatnonzero(exponents > 0)
        if decimal.size:
            values[decimal] /= _POWERS[exponents[decimal], None]
        if valid is not None:
            values[~valid.reshape(series, times)] = np.nan
    except (ValueError, IndexError, struct.error, zlib.error) as error:
        raise _malformed(str(error)) from error
    return ids, values


def _filled(values: Matrix, valid: NDArray[np.bool_]) -> Matrix:
    """Each gap as the value to its left, or at the beginning to its right; nothing at all as 0."""
    positions = np.where(valid, np.arange(values.shape[1]), 0)
    np.maximum.accumulate(positions, axis=1, out=positions)
    filled = np.take_along_axis(values, positions, axis=1)
    first = np.take_along_axis(values, valid.argmax(axis=1)[:, None], axis=1)
    filled = np.where(np.isnan(filled), first, filled)
    return np.nan_to_num(filled, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)


def _exponents(values: Matrix) -> NDArray[np.int8]:
    """For each row the least k for which it is scaled, or -1."""
    exponents = np.full(len(values), -1, np.int8)
    if not values.size:
        return exponents
    with np.errstate(invalid="ignore", over="ignore"):
        open_rows = np.flatnonzero(
            (np.abs(values) < _EXACT).all(axis=1)
            & ~(np.signbit(values) & (values == 0)).any(axis=1)
        )
        for exponent, power in enumerate(_POWERS):
            if not open_rows.size:
                break
            # The last value first: it settles most rows at a fraction of the cost.
            likely = open_rows[_is_scaled(values[open_rows, -1:], power)]
            found = likely[_is_scaled(values[likely], power)]
            exponents[found] = exponent
            open_rows = open_rows[exponents[open_rows] < 0]
    return exponents


def _is_scaled(values: Matrix, power: float) -> NDArray[np.bool_]:
    whole = np.rint(values * power)
    return ((whole / power == values) & (np.abs(whole) < _EXACT)).all(axis=1)  # type: ignore[no-any-return]


def _differences(values: NDArray[np.int64], *, across: bool) -> bytes:
    if not values.size:
        return b""
    first, steps = values[:, :1], np.diff(values, axis=1)
    mode = b"\x00"
    if across and len(values) > 1 and steps.size:
        beside = np.diff(steps, axis=0, prepend=0)
        if np.count_nonzero(beside) < np.count_nonzero(steps):
            mode, steps = b"\x01", beside
    return mode + _folded(np.diff(first, axis=0, prepend=0)) + _folded(steps)


def _sums(reader: _Bytes, series: int, times: int, *, across: bool) -> NDArray[np.int64]:
    if not series or not times:
        return np.empty((series, times), np.int64)
    mode = reader.take(1)[0]
    values = np.empty((series, times), np.int64)
    values[:, 0] = np.cumsum(_unfolded(reader, series))
    steps = _unfolded(reader, series * (times - 1)).reshape(series, times - 1)
    if across and mode:
        steps = np.cumsum(steps, axis=0)
    values[:, 1:] = steps
    return np.cumsum(values, axis=1, out=values)


def _folded(values: NDArray[np.int64]) -> bytes:
    """Signed numbers with the small ones first, in as few bytes as the largest needs, by planes."""
    folded = ((values << 1) ^ (values >> 63)).view(np.uint64).ravel()
    largest = int(folded.max(initial=0))
    width = next(kind for kind in _WIDTHS if largest <= np.iinfo(kind).max)
    narrow = folded.astype(width)
    size = narrow.itemsize
    planes = narrow.view(np.uint8).reshape(-1, size).T
    return bytes((size,)) + planes.tobytes()


def _unfolded(reader: _Bytes, count: int) -> NDArray[np.int64]:
    size = reader.take(1)[0]
    if size not in {1, 2, 4, 8}:
        raise _malformed(f"numbers of {size} bytes")
    planes = np.frombuffer(reader.take(count * size), np.uint8).reshape(size, count)
    kind = _WIDTHS[size.bit_length() - 1]
    folded = np.ascontiguousarray(planes.T).view(kind).ravel().astype(np.int64)
    return (folded >> 1 & np.int64((1 << 63) - 1)) ^ -(folded & 1)


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, count: int) -> memoryview:
        if self._at + count > len(self._data):
            raise _malformed("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def end(self) -> None:
        if self._at != len(self._data):
            raise _malformed("it does not end where it should")


def _malformed(what: str) -> InvalidError:
    return InvalidError(f"got a malformed block of series: {what}")
