"""The pure topology rule: exact counts, ties, and who may be dropped or grown."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regrow
from regrow.algorithm import Algorithm
from regrow.layers import Layer
from regrow.parts.distributions import total_alive
from regrow.parts.patterns import channels, output_blocks, unstructured
from regrow.parts.schedules import Constant
from regrow.parts.scores import Evidence, gradient_magnitude
from regrow.parts.topk import select
from regrow.topology import grids, initial_masks, next_mask, unit_counts, updated_masks

# Few distinct values, so that ties are the rule and not the exception.
VALUES = st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=60)


def evidence(weight: Tensor, alive: Tensor, gradient: Tensor, name: str = "w") -> Evidence:
    layer = Layer(name, tuple(weight.shape))
    return Evidence(layer, alive, weight * alive, gradient, gradient, seed=0, step=7)


@given(VALUES, st.data())
def test_select_takes_exactly_the_best_and_the_lower_index_on_ties(values, data) -> None:
    among = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    count = data.draw(st.integers(0, sum(among)))
    chosen = select(torch.tensor(values), count, torch.tensor(among))
    ranked = sorted((i for i, candidate in enumerate(among) if candidate), key=lambda i: (-values[i], i))
    assert chosen.nonzero().flatten().tolist() == sorted(ranked[:count])


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_select_does_not_mind_the_order_of_memory(share) -> None:
    torch.manual_seed(0)
    scores, among = torch.rand(5, 4, 3, 3), torch.rand(5, 4, 3, 3) < share
    strided = [tensor.to(memory_format=torch.channels_last) for tensor in (scores, among)]
    assert torch.equal(select(*(strided[0], 9, strided[1])), select(scores, 9, among))


def test_select_ranks_nan_and_minus_infinity_last_without_losing_count() -> None:
    scores = torch.tensor([float("nan"), -torch.inf, 1.0, torch.inf])
    assert select(scores, 2, torch.ones(4, dtype=torch.bool)).tolist() == [False, False, True, True]
    assert select(scores, 4, torch.ones(4, dtype=torch.bool)).all()
    assert int(select(torch.full((5,), torch.nan), 3, torch.ones(5, dtype=torch.bool)).sum()) == 3


@given(VALUES, st.data())
def test_an_update_keeps_the_best_alive_and_grows_the_best_of_the_rest(values, data) -> None:
    size = len(values)
    drop = torch.tensor(values)
    grow = torch.tensor(data.draw(st.lists(st.integers(0, 2).map(float), min_size=size, max_size=size)))
    alive = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    keep = data.draw(st.integers(0, int(alive.sum())))
    budget = data.draw(st.integers(keep, size))
    mask = next_mask(alive, keep=keep, budget=budget, drop=drop, grow=grow)
    assert int(mask.sum()) == budget
    kept = select(drop, keep, alive)
    assert bool((mask & kept).sum() == keep)
    grown = mask & ~kept
    if grown.any() and (~mask).any():
        assert grow[grown].min() >= grow[~mask].max()


def test_the_worked_update() -> None:
    """Drop the smallest |w|; grow the largest gradient of all that is not kept, the just dropped included."""
    weight = torch.tensor([0.5, -0.1, 0.3, 0.0, 0.0, -0.9, 0.2, 0.0, 0.4, 0.6])
    alive = weight != 0
    gradient = torch.tensor([9.0, 5.0, 0.1, 0.2, 3.0, 9.0, 0.0, 1.0, 9.0, 9.0])
    algorithm = regrow.rigl(sparsity=0.3, total_steps=1000, drop_fraction=0.3)
    masks = updated_masks(algorithm, 0, {"w": evidence(weight, alive, gradient)})
    # Two of seven are dropped (-0.1 and 0.2); positions 1 (just dropped, gradient 5) and 4 (gradient 3) are grown.
    assert masks["w"].nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 8, 9]


def test_a_drop_fraction_of_one_keeps_the_best_weight_of_each_layer_and_no_other() -> None:
    weight, alive = torch.tensor([0.1, 3.0, 0.2, 0.0, 0.0, 0.0]), torch.arange(6) < 3
    known = {"w": evidence(weight, alive, torch.tensor([9.0, 0.0, 1.0, 0.0, 5.0, 4.0]), "w")}
    record = regrow.rigl(sparsity=0.5, total_steps=100, drop_fraction=1.0)
    assert updated_masks(record, 0, known)["w"].tolist() == [True, True, False, False, True, False]


def test_a_gradient_of_zeros_grows_exactly_k_and_touches_no_kept_weight() -> None:
    torch.manual_seed(0)
    weight, alive = torch.randn(50), torch.zeros(50, dtype=torch.bool)
    alive[:20] = True
    algorithm = regrow.rigl(sparsity=0.6, total_steps=1000)
    mask = updated_masks(algorithm, 0, {"w": evidence(weight, alive, torch.zeros(50))})["w"]
    kept = select((weight * alive).abs(), 14, alive)
    assert int(mask.sum()) == 20
    assert bool(mask[kept].all())


def test_alive_weights_with_zero_values_are_not_taken_for_dead_ones() -> None:
    """Newborn weights are 0, and so is their score: growth must not pick them 'again' and lose density."""
    alive = torch.zeros(1000, dtype=torch.bool)
    alive[::10] = True
    weight = torch.zeros(1000)
    for step in range(20):
        mask = updated_masks(
            regrow.rigl(sparsity=0.9, total_steps=10_000), step, {"w": evidence(weight, alive, torch.zeros(1000))}
        ).get("w", alive)
        assert int(mask.sum()) == 100
        alive = mask


def test_full_layers_are_left_alone_unless_weights_are_redistributed() -> None:
    torch.manual_seed(1)
    full, half = torch.ones(40, dtype=torch.bool), torch.arange(60) < 30
    known = {
        "full": evidence(torch.randn(40), full, torch.randn(40) * 0.01, "full"),
        "half": evidence(torch.randn(60), half, torch.randn(60), "half"),
    }
    shared = {"sparsity": 0.3, "total_steps": 1000, "distribution": {"full": 0.0, "half": 0.5}}
    assert set(updated_masks(regrow.rigl(**shared), 0, known)) == {"half"}
    moved = updated_masks(regrow.rigl_sg(**shared), 0, known)
    assert int(moved["full"].sum()) < 40
    assert int(moved["full"].sum()) + int(moved["half"].sum()) == 70


def test_redistribution_never_empties_a_layer_and_keeps_the_sum() -> None:
    torch.manual_seed(2)
    alive = {"a": torch.arange(10) < 1, "b": torch.arange(100) < 60}
    known = {
        "a": evidence(torch.randn(10), alive["a"], torch.zeros(10), "a"),
        "b": evidence(torch.randn(100), alive["b"], torch.ones(100), "b"),
    }
    algorithm = regrow.rigl_sg(
        sparsity=1 - 61 / 110, total_steps=1000, drop_fraction=0.9, distribution={"a": 0.9, "b": 0.4}
    )
    masks = {name: known[name].alive for name in known} | updated_masks(algorithm, 0, known)
    assert int(masks["a"].sum()) >= 1
    assert sum(int(mask.sum()) for mask in masks.values()) == 61


def test_global_pruning_uses_one_threshold_and_spares_one_weight_a_layer() -> None:
    small, large = torch.full((10,), 0.01), torch.linspace(1, 2, 90)
    alive = {"small": torch.ones(10, dtype=torch.bool), "large": torch.ones(90, dtype=torch.bool)}
    known = {
        "small": evidence(small, alive["small"], small, "small"),
        "large": evidence(large, alive["large"], large, "large"),
    }
    algorithm = regrow.gradual_pruning(sparsity=0.5, total_steps=100, start=0, stop=0)
    masks = updated_masks(algorithm, 0, known)
    assert int(masks["small"].sum()) == 1
    assert int(masks["large"].sum()) == 49
    assert bool((masks["large"] == (large >= large[41])).all())


PATTERNS = {"weights": unstructured, "blocks": output_blocks(4), "channels": channels}


@dataclass(frozen=True)
class Course:
    """Another sparsity at each step."""

    sparsities: tuple[float, ...]

    def __call__(self, step: int) -> float:
        return self.sparsities[min(step, len(self.sparsities) - 1)]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=40)
@given(
    course=st.lists(st.floats(0, 0.7), min_size=2, max_size=5),
    starts_dense=st.booleans(),
    redistribute=st.booleans(),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    values=st.sampled_from([3, 1000]),
)
def test_a_budget_that_falls_and_grows_is_met_exactly(
    scope, pattern, course, starts_dense, redistribute, share, values
) -> None:
    unit = PATTERNS[pattern]
    layers = {"a": Layer("a", (20, 3, 2, 2), True), "b": Layer("b", (10, 30)), "c": Layer("c", (9, 2))}
    method = Algorithm(
        name="course",
        sparsity=Course((0.5, *course)),
        distribute=regrow.erk if pattern == "weights" else regrow.uniform,
        initial=None if starts_dense else regrow.parts.scores.random,
        grow=gradient_magnitude,
        fraction=Constant(share),
        redistribute=gradient_magnitude if redistribute else None,
        pattern=unit,
        scope=scope,
    )
    generator = torch.Generator().manual_seed(0)

    def known(masks: dict[str, Tensor]) -> dict[str, Evidence]:
        def draw(layer: Layer) -> Tensor:  # few values, so that ties are the rule, or many
            return torch.randint(1, values, layer.shape, generator=generator).float()

        return {
            name: Evidence(layer, masks[name], draw(layer) * masks[name], draw(layer), None, seed=0, step=0)
            for name, layer in layers.items()
        }

    masks = initial_masks(method, known({name: torch.ones(layer.shape) > 0 for name, layer in layers.items()}))
    for step, sparsity in enumerate(course, start=1):
        masks |= updated_masks(method, step, known(masks))
        found = {name: int(unit.units(mask).sum()) for name, mask in masks.items()}
        per_layer = unit_counts(method, layers, sparsity)
        total = total_alive(grids(method, layers), sparsity)
        assert sum(found.values()) == (sum(per_layer.values()) if scope == "layer" else total)
        assert redistribute or scope == "global" or found == per_layer
        assert all(found.values())
        assert all(torch.equal(unit.expand(unit.units(mask), tuple(mask.shape)), mask) for mask in masks.values())


def test_a_budget_that_grows_again_goes_to_the_largest_growth_scores_of_all_layers() -> None:
    first, second = torch.arange(10) < 2, torch.arange(10) < 2
    known = {
        "first": evidence(torch.ones(10), first, torch.tensor([9.0] * 5 + [1.0] * 5), "first"),
        "second": evidence(torch.ones(10), second, torch.tensor([9.0] * 2 + [5.0] * 2 + [0.0] * 6), "second"),
    }
    method = replace(
        regrow.gradual_pruning(sparsity=0.8, total_steps=2000), sparsity=Course((0.8, 0.5)), grow=gradient_magnitude
    )
    masks = updated_masks(method, 1, known)
    assert masks["first"].tolist() == [True] * 6 + [False] * 4
    assert masks["second"].tolist() == [True] * 4 + [False] * 6


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_layer_that_stands_still_leaves_its_share_of_a_growing_budget_to_the_others(scope) -> None:
    alive = torch.arange(50) < 5
    known = {name: evidence(torch.ones(50), alive, torch.ones(50), name) for name in ("still", "a", "b")}
    method = replace(
        regrow.gradual_pruning(sparsity=0.9, total_steps=2000, scope=scope),
        sparsity=Course((0.9, 0.4)),
        grow=gradient_magnitude,
    )
    masks = updated_masks(method, 1, known, frozen={"still"})
    assert {name: int(mask.sum()) for name, mask in masks.items()} == (
        {"a": 30, "b": 30} if scope == "layer" else {"a": 50, "b": 35}
    )


def test_a_global_scope_leaves_a_constant_number_as_the_distribution_rounded_it() -> None:
    layers = {name: Layer(name, (5,)) for name in "abc"}  # 1.5 each, so 2, and 4.5 together, so 4
    method = replace(regrow.rigl(sparsity=0.7, total_steps=100, distribution=regrow.uniform), scope="global")
    everything = {name: evidence(torch.ones(5), torch.ones(5) > 0, torch.ones(5), name) for name in layers}
    masks = initial_masks(method, everything)
    assert sum(int(mask.sum()) for mask in masks.values()) == 6
    known = {name: evidence(torch.ones(5), mask, torch.rand(5), name) for name, mask in masks.items()}
    masks |= updated_masks(method, 0, known)
    assert sum(int(mask.sum()) for mask in masks.values()) == 6


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_sparsity_that_falls_where_nothing_grows_is_refused(scope) -> None:
    model = torch.nn.Linear(8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruning = regrow.gradual_pruning(sparsity=0.8, total_steps=100, every=10, start=0, scope=scope)
    falling = replace(pruning, sparsity=Course((0.0,) * 11 + (0.8,) * 20 + (0.5,)))
    with pytest.raises(ValueError, match=r"falls from 0\.8 to 0\.5 at step 40, and nothing grows"):
        regrow.attach(model, torch.optim.SGD(model.parameters(), 0.1), falling)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    growing = replace(falling, grow=regrow.parts.scores.random)
    assert regrow.attach(model, torch.optim.SGD(model.parameters(), 0.1), growing).sparsity == 0


def test_a_sparsity_that_falls_where_nobody_could_know_it_before_is_refused_at_the_update() -> None:
    course, known = [0.0, 0.5], {"w": evidence(torch.rand(100), torch.ones(100) > 0, torch.ones(100), "w")}
    method = replace(regrow.gradual_pruning(sparsity=0.5, total_steps=2000), sparsity=course.__getitem__)
    masks = initial_masks(method, known) | updated_masks(method, 1, known)
    assert int(masks["w"].sum()) == 50
    course.append(0.2)
    with pytest.raises(ValueError, match=r"has fallen to 0\.2 at step 2, and nothing grows"):
        updated_masks(method, 2, {"w": evidence(torch.rand(100), masks["w"], torch.ones(100), "w")})


def test_blocks_and_channels_live_and_die_as_one() -> None:
    torch.manual_seed(3)
    weight = torch.randn(10, 3, 3, 3)
    for pattern, budget in ((output_blocks(4), 20), (channels, 4)):
        units = torch.zeros(pattern.grid((10, 3, 3, 3)), dtype=torch.bool)
        units.view(-1)[:budget] = True
        alive = pattern.expand(units, (10, 3, 3, 3))
        mask = next_mask(alive, keep=budget // 2, budget=budget, drop=weight.abs(), grow=weight.abs(), pattern=pattern)
        assert torch.equal(pattern.expand(pattern.reduce(mask.float()) > 0, (10, 3, 3, 3)), mask)
        assert int((pattern.reduce(mask.float()) > 0).sum()) == budget
