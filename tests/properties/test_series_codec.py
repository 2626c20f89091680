"""The columnar codec gives back every bit, and refuses what is damaged."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bedstone.control.monitoring.codec import Matrix, pack, unpack
from bedstone.errors import InvalidError

cells = st.one_of(
    st.just(float("nan")),
    st.integers(-3, 1000).map(float),
    st.integers(0, 1000).map(lambda it: it / 100),
    st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), 2.0**53, 2.0**53 - 1, 1e308, 5e-324]),
    st.floats(allow_nan=False),
)
shapes = st.tuples(st.integers(0, 6), st.integers(1, 12))
matrices = shapes.flatmap(lambda shape: arrays.arrays(np.float64, shape, elements=cells)) | (
    shapes.flatmap(
        lambda shape: arrays.arrays(np.int64, shape, elements=st.integers(0, 1 << 40)).map(
            lambda it: np.cumsum(it, axis=1).astype(np.float64)
        )
    )
)


def ids_for(values: Matrix, step: int = 1) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(len(values), dtype=np.int64) * step + (1 << 40)


def assert_same(back: Matrix, values: Matrix) -> None:
    gap = np.isnan(values)
    assert np.array_equal(np.isnan(back), gap)
    assert np.array_equal(back[~gap].view(np.int64), values[~gap].view(np.int64))


@given(matrices)
def test_a_matrix_comes_back_bit_by_bit(values: Matrix) -> None:
    ids, back = unpack(pack(ids_for(values, 7), values))
    assert np.array_equal(ids, ids_for(values, 7))
    assert_same(back, values)


@given(matrices, st.data())
def test_damaged_bytes_are_refused_or_are_another_matrix_and_never_crash(
    values: Matrix, data: st.DataObject
) -> None:
    packed = bytearray(pack(ids_for(values), values))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (bytes(packed), bytes(packed[: data.draw(st.integers(0, len(packed)))])):
        try:
            ids, back = unpack(damaged)
        except InvalidError:
            continue
        assert len(ids) == len(back)


def test_counters_of_whole_numbers_take_less_than_two_bytes_a_point() -> None:
    random = np.random.default_rng(1)
    values = np.cumsum(random.poisson(5, (256, 120)), axis=1).astype(np.float64)
    assert len(pack(ids_for(values), values)) / values.size < 1


def test_what_does_not_change_takes_next_to_nothing() -> None:
    values = np.repeat(np.random.default_rng(1).random((256, 1)), 120, axis=1)
    assert len(pack(ids_for(values), values)) / values.size < 0.1
