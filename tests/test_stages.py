"""stages.py: items come in order whatever the threads do, errors come where their item would, and nothing is left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdub.stages import Clock, Stages, spread


def counted(count: int, closed: list[str] | None = None, *, fail_at: int = -1) -> Iterator[int]:
    try:
        for number in range(count):
            if number == fail_at:
                raise RuntimeError(f"item {number}")
            yield number
    finally:
        if closed is not None:
            closed.append("closed")


def stage_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lipdub-stage")]


@given(count=st.integers(0, 40), depth=st.integers(1, 5), workers=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_all_items_arrive_once_and_in_order(count: int, depth: int, workers: int) -> None:
    closed: list[str] = []
    with Stages() as stages:
        first = stages.ahead(counted(count, closed), depth=depth)
        second = stages.ahead(spread(lambda number: 2 * number, first, workers=workers), depth=depth)
        assert list(second) == [2 * number for number in range(count)]
    assert closed == ["closed"]
    assert stage_threads() == []


@pytest.mark.parametrize("depth", [1, 3])
def test_a_stage_runs_ahead_no_further_than_it_may(depth: int) -> None:
    made: list[int] = []

    def making() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    with Stages() as stages:
        items = stages.ahead(making(), depth=depth)
        for number in items:
            time.sleep(0.002)
            # One in hand, `depth` on the belt, one made that waits for its place.
            assert len(made) <= number + 1 + depth + 1


def test_stages_overlap() -> None:
    def slow(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            time.sleep(0.03)
            yield item

    started = time.perf_counter()
    with Stages() as stages:
        assert len(list(slow(stages.ahead(slow(stages.ahead(slow(counted(10)))))))) == 10
    # One after the other it takes 0.9 s.
    assert time.perf_counter() - started < 0.7


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_arrives_after_the_items_before_it(workers: int) -> None:
    seen: list[int] = []
    closed: list[str] = []

    def consume() -> None:
        with Stages() as stages:
            inner = stages.ahead(counted(9, closed, fail_at=4))
            seen.extend(stages.ahead(spread(lambda item: item, inner, workers=workers)))

    with pytest.raises(RuntimeError, match="item 4"):
        consume()
    assert seen == [0, 1, 2, 3]
    assert closed == ["closed"]
    assert stage_threads() == []


def test_whoever_leaves_early_stops_every_stage() -> None:
    closed: list[str] = []

    def consume() -> None:
        with Stages() as stages:
            inner = stages.ahead(counted(10**9, closed))
            for number in stages.ahead(spread(lambda item: item, inner, workers=2)):
                if number == 3:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert closed == ["closed"]
    assert stage_threads() == []


def test_a_stage_that_nobody_takes_from_is_stopped_too() -> None:
    closed: list[str] = []
    with Stages() as stages:
        stages.ahead(counted(10**9, closed))
    assert closed == ["closed"]
    assert stage_threads() == []


def test_a_clock_books_the_inner_stage_and_adds_up_threads() -> None:
    clock = Clock()

    def busy() -> None:
        with clock("outer"):
            time.sleep(0.02)
            with clock("inner"):
                time.sleep(0.05)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - started
    assert 0.15 <= clock.seconds["inner"] <= 3 * wall_s
    assert 0.06 <= clock.seconds["outer"] < 0.15


def test_a_clock_does_not_count_the_time_between_items() -> None:
    clock = Clock()
    for _ in clock.timed("making", counted(5)):
        time.sleep(0.01)
    assert clock.seconds["making"] < 0.02
