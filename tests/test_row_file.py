"""row_file.py: what was put in comes out, whatever is asked for and in whatever order; nothing of it stays in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdub.row_file import RowFile


@given(count=st.integers(1, 700), data=st.data())
@settings(max_examples=30)
def test_rows_come_back_in_the_order_asked_for(count: int, data: st.DataObject) -> None:
    rows = np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32)
    store = RowFile(5)
    try:
        for number, row in enumerate(rows):
            assert store.add(row) == number
            if number % 97 == 0:  # asked for between, too
                assert (store.rows(np.array([number])) == row).all()
        asked = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=40)), np.int64)
        assert (store.rows(asked) == rows[asked]).all()
        assert store.count == count
    finally:
        store.close()


@pytest.mark.parametrize("numbers", [[-1], [3], [0, 5]])
def test_a_row_that_is_not_there_is_an_error(numbers: list[int]) -> None:
    store = RowFile(2)
    for _ in range(3):
        store.add(np.zeros(2))
    with pytest.raises(IndexError, match="there are 3"):
        store.rows(np.array(numbers))
    with pytest.raises(ValueError, match="2 numbers"):
        store.add(np.zeros(3))
    store.close()


def test_memory_does_not_grow_with_the_rows() -> None:
    store = RowFile(128)
    tracemalloc.start()
    try:
        for _ in range(20000):
            store.add(np.zeros(128))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        store.close()
    assert held < 2**20
