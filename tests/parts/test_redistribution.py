from hypothesis import given
from hypothesis import strategies as st

from regrow.parts.redistribution import apportion

LAYERS = st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 200)), min_size=1, max_size=8)


@given(LAYERS, st.floats(0, 1))
def test_shares_are_exact_integers_within_capacity(layers, part) -> None:
    shares, capacities = [share for share, _ in layers], [capacity for _, capacity in layers]
    total = int(part * sum(capacities))
    given_out = apportion(total, shares, capacities)
    assert sum(given_out) == total
    assert all(0 <= count <= capacity for count, capacity in zip(given_out, capacities, strict=True))


def test_without_caps_shares_are_proportional_within_one() -> None:
    assert apportion(100, [1, 2, 7], [1000, 1000, 1000]) == [10, 20, 70]
    assert apportion(101, [1, 2, 7], [1000, 1000, 1000]) == [10, 20, 71]


def test_overflow_goes_to_the_others() -> None:
    assert apportion(100, [1, 1, 8], [1000, 1000, 20]) == [40, 40, 20]


def test_a_layer_without_share_gets_none_while_others_have_room() -> None:
    assert apportion(10, [0, 1], [50, 50]) == [0, 10]
    assert apportion(60, [0, 1], [50, 50]) == [10, 50]
