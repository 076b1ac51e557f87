import math

import pytest

from regrow_lab.config import SCHEDULES as NAMES
from regrow_lab.config import RunConfig
from regrow_lab.run.learning_rate import SCHEDULES, learning_rate


def rates(config: RunConfig, steps: int) -> list[float]:
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_names() -> None:
    assert tuple(SCHEDULES) == NAMES


def test_cosine_and_constant() -> None:
    assert rates(RunConfig(learning_rate=2.0), 4) == pytest.approx(
        [2, 1 + math.cos(math.pi / 4), 1, 1 - math.cos(math.pi / 4)]
    )
    assert rates(RunConfig(schedule="constant"), 3) == [0.1] * 3


def test_steps_are_those_of_the_report_and_stretch_with_the_multiplier() -> None:
    config = RunConfig(schedule="step", learning_rate=0.1)
    for multiplier in (1, 2):
        stretched = RunConfig(schedule="step", multiplier=multiplier)
        for step, rate in ((0, 0.1), (29_999, 0.1), (30_000, 0.02), (60_000, 0.004), (87_999, 0.004)):
            assert learning_rate(stretched, step * multiplier, 88_000 * multiplier) == pytest.approx(rate)
    assert learning_rate(config, 29_999, 10) == 0.1


@pytest.mark.parametrize(("decay_steps", "multiplier"), [(100, 1.1), (20_000, 2.3), (1000, 1.15), (30_000, 2.97)])
def test_a_fractional_multiplier_does_not_put_a_decay_off(decay_steps: int, multiplier: float) -> None:
    config = RunConfig(schedule="step", decay=0.5, learning_rate=1.0, decay_steps=decay_steps, multiplier=multiplier)
    for decays in range(1, 4):
        step = round(decay_steps * decays * multiplier)
        assert [learning_rate(config, step + late, 10**6) for late in (-1, 0)] == [0.5 ** (decays - 1), 0.5**decays]


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_whole_multipliers_decay_where_they_always_did(multiplier: int) -> None:
    config = RunConfig(schedule="step", decay=0.5, learning_rate=1.0, decay_steps=7, multiplier=multiplier)
    assert rates(config, 200) == [0.5 ** (step // (7 * multiplier)) for step in range(200)]


def test_warm_up_is_linear_and_does_not_stretch() -> None:
    for multiplier in (1, 3):
        config = RunConfig(schedule="step", decay_steps=20_000, warmup_steps=1760, multiplier=multiplier)
        assert learning_rate(config, 0, 88_000) == pytest.approx(0.1 / 1760)
        assert learning_rate(config, 879, 88_000) == pytest.approx(0.05)
        assert learning_rate(config, 1759, 88_000) == learning_rate(config, 1760, 88_000) == pytest.approx(0.1)


def test_one_cycle() -> None:
    config = RunConfig(schedule="one-cycle", learning_rate=0.2)
    found = rates(config, 1000)
    assert found[0] == pytest.approx(0.008)
    assert found.index(max(found)) == 300
    assert found[300] == pytest.approx(0.2)
    assert found[150] == pytest.approx(0.104)
    assert found[:301] == sorted(found[:301])
    assert found[300:] == sorted(found[300:], reverse=True)
    assert found[-1] < 1e-4 * 0.2
