import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.parts.schedules import Cosine, Cubic, Every, Never, Once


def test_cosine_takes_the_published_values() -> None:
    schedule = Cosine(0.3, end=400)
    assert [round(schedule(t), 5) for t in (0, 100, 200, 300, 400)] == [0.3, 0.25607, 0.15, 0.04393, 0.0]
    assert schedule(401) == 0.0


def test_cubic_takes_the_published_values_and_reaches_its_end() -> None:
    schedule = Cubic(0.9, start=700, end=1100)
    assert [round(schedule(t), 4) for t in (700, 800, 900, 1000, 1100)] == [0.0, 0.5203, 0.7875, 0.8859, 0.9]
    assert schedule(0) == 0.0
    assert schedule(10_000) == 0.9


def test_cubic_of_length_zero_is_a_jump() -> None:
    assert [Cubic(0.9, start=5, end=5)(t) for t in (4, 5)] == [0.0, 0.9]


@given(st.integers(1, 20), st.integers(0, 50), st.integers(0, 120), st.integers(0, 150))
def test_following_is_the_next_step_that_fires(interval: int, start: int, stop: int, step: int) -> None:
    trigger = Every(interval, start, stop)
    fires = [t for t in range(step, 200) if trigger(t)]
    assert trigger.following(step) == (fires[0] if fires else None)


@pytest.mark.parametrize("trigger", [Once(3), Never()])
def test_following_of_single_triggers(trigger: Once | Never) -> None:
    for step in range(6):
        fires = [t for t in range(step, 10) if trigger(t)]
        assert trigger.following(step) == (fires[0] if fires else None)
