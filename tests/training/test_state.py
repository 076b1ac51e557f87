"""Save, load, go on: bit-identical; and a state that does not fit is refused before anything changes."""

import copy
import dataclasses
import functools
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import convnet, mlp, sgd, train

import regrow
from regrow.storage.mask_bits import pack, unpack

RECIPES = [regrow.set_, regrow.rigl, regrow.snfs, regrow.rigl_sg, regrow.rigl_sm]
RAMP = {"total_steps": 20, "start": 1, "every": 1}


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packing_keeps_every_bit(bits) -> None:
    mask = torch.tensor(bits)
    packed = pack(mask)
    assert packed.numel() == -(-len(bits) // 8)
    assert torch.equal(unpack(packed, mask.shape), mask)


def build(recipe, seed=3):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return model, optimizer, regrow.attach(model, optimizer, recipe(sparsity=0.8, total_steps=40, every=4), seed=seed)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stop", [0, 3, 4, 5, 13])
def test_a_run_stopped_anywhere_goes_on_bit_identically(recipe, stop) -> None:
    model, optimizer, sparsifier = build(recipe)
    train(model, optimizer, range(stop))
    buffer = io.BytesIO()
    parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier}
    torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)
    train(model, optimizer, range(stop, 25))

    fresh, again, resumed = build(recipe, seed=99)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    fresh.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["sparsifier"])
    train(fresh, again, range(stop, 25))
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])
    for name, mask in sparsifier.masks.items():
        assert torch.equal(mask, resumed.masks[name])
    assert resumed.mean_densities == sparsifier.mean_densities
    assert (resumed.weight_steps, resumed.num_updates) == (sparsifier.weight_steps, sparsifier.num_updates)
    for one, two in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one if isinstance(one[key], torch.Tensor))


def test_the_order_of_loading_does_not_matter() -> None:
    model, optimizer, sparsifier = build(regrow.rigl_sm)
    train(model, optimizer, range(9))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        parts = build(regrow.rigl_sm, seed=99)
        for position in order:
            parts[position].load_state_dict(copy.deepcopy(saved[position]))
        train(parts[0], parts[1], range(9, 15))
        reference = build(regrow.rigl_sm)
        train(reference[0], reference[1], range(15))
        assert all(torch.equal(v, reference[0].state_dict()[k]) for k, v in parts[0].state_dict().items())


def test_masks_take_one_bit_a_weight_on_disk() -> None:
    model = convnet()
    sparsifier = regrow.attach(model, sgd(model), regrow.static(sparsity=0.5))
    for name, entry in sparsifier.state_dict()["layers"].items():
        assert entry["mask"].numel() == -(-sparsifier.masks[name].numel() // 8)


def damaged(state, path, value):
    state = copy.deepcopy(state)
    place = state
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return state


LAYER = ("layers", "0.weight")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "version 2"),
        (("version",), None, "not a state of a sparsifier"),
        (("seed",), "x", "'seed' is 'x'"),
        (("weight_steps",), -1, "'weight_steps' is -1"),
        (("layers",), None, "no layers"),
        (LAYER, None, r"lacks layer '0\.weight'"),
        (("layers", "extra"), {}, "has a layer 'extra' besides"),
        ((*LAYER, "shape"), [12, 24], r"shape \[12, 24\], the model's is \[24, 12\]"),
        ((*LAYER, "mask"), torch.zeros(35, dtype=torch.uint8), "is not 36 bytes"),
        ((*LAYER, "mask"), torch.zeros(36), "is not 36 bytes"),
        ((*LAYER, "mask"), torch.zeros(36, dtype=torch.uint8), "has no alive weight"),
        ((*LAYER, "mask"), torch.zeros(36, dtype=torch.uint8, device="meta"), "is not 36 bytes"),
        ((*LAYER, "mask"), torch.ones(36, dtype=torch.uint8).to_sparse(), "is not 36 bytes"),
        ((*LAYER, "alive_steps"), -5, "'alive_steps'"),
        ((*LAYER, "alive_steps"), 0, r"'alive_steps' of '0\.weight' is 0, expected 280 to 280"),
        ((*LAYER, "alive_steps"), True, "'alive_steps' .* is True"),
        (("seed",), -1, "'seed' is -1"),
        (("weight_steps",), True, "'weight_steps' is True"),
        pytest.param(("weight_steps",), 10**5000, "'weight_steps' is a number of 16610 bits", id="long"),
        (("weight_steps",), 9, r"'alive_steps' of '0\.weight' is 280, expected 504 to 504"),
        (("num_updates",), 0, "it counts 0 updates where the schedule has 1 in 5 weight steps"),
        (("num_updates",), 2, "it counts 2 updates where the schedule has 1 in 5 weight steps"),
        (("num_updates",), 10**18, "it counts 10"),
        (("groups", 0, "next_update"), 10**9, "its next update is at 1000000000, and after 5 weight steps"),
        (("groups", 0, "next_update"), 7, "its next update is at 7, and after 5 weight steps .* has one at 8"),
        (("groups", 0, "next_update"), 12, "its next update is at 12, .* attach with the schedule"),
        (("groups", 0, "next_update"), 4, "it counts 1 updates where the schedule has 0 in 5 weight steps"),
        (("groups", 0, "next_update"), True, "'next_update' is True"),
        (("groups", 0, "next_update"), None, "its next update is at None, and after 5 weight steps"),
        ((*LAYER, "momentum"), torch.zeros(3), "momentum"),
        (("groups", 0, "algorithm"), "set", "saved with algorithm set, this sparsifier runs rigl"),
        (("groups", 0, "next_update"), "soon", "'next_update' is 'soon'"),
        (("groups",), 5, "no groups"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(path, value, message) -> None:
    model, optimizer, sparsifier = build(regrow.rigl)
    train(model, optimizer, range(6))
    state = sparsifier.state_dict()
    before, weights = copy.deepcopy(state), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        sparsifier.load_state_dict(damaged(state, path, value))
    after = sparsifier.state_dict()
    assert all(torch.equal(after["layers"][n]["mask"], before["layers"][n]["mask"]) for n in before["layers"])
    assert {k: v for k, v in after.items() if k != "layers"} == {k: v for k, v in before.items() if k != "layers"}
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda momentum: momentum.fill_(math.nan), "values that are not finite"),
        (lambda momentum: momentum.fill_(math.inf), "values that are not finite"),
        (lambda momentum: momentum.to("meta"), "another shape or kind"),
        (lambda momentum: momentum.to_sparse(), "another shape or kind"),
        (lambda momentum: momentum + 0j, "another shape or kind"),
        (lambda momentum: momentum.tolist(), "another shape or kind"),
    ],
)
def test_a_momentum_that_would_decide_nothing_is_refused(value, message) -> None:
    model, optimizer, sparsifier = build(regrow.snfs)
    train(model, optimizer, range(6))
    state = sparsifier.state_dict()
    momentum = state["layers"]["0.weight"]["momentum"]
    with pytest.raises(ValueError, match=rf"the momentum of '0\.weight' .*{message}"):
        sparsifier.load_state_dict(damaged(state, (*LAYER, "momentum"), value(momentum.clone())))
    sparsifier.load_state_dict(damaged(state, (*LAYER, "momentum"), momentum.double()))


COUNTERS = st.one_of(st.none(), st.booleans(), st.integers(-2, 45), st.sampled_from([2**31, 10**9, 10**18, 2**64]))


@given(
    recipe=st.sampled_from([regrow.rigl, regrow.set_, regrow.snip]),
    stop=st.sampled_from([0, 1, 4, 5, 13, 34]),
    due=COUNTERS,
    updates=COUNTERS,
    steps=COUNTERS,
)
@settings(max_examples=150, deadline=None)
def test_of_all_counters_those_are_taken_up_that_a_run_can_have(recipe, stop, due, updates, steps) -> None:
    """Whatever is taken up: no update is due that the schedule has not, none is left out that is still to come."""
    sparsifier, state = stopped_at(recipe, stop)
    changed = copy.deepcopy(state)
    changed["groups"][0]["next_update"], changed["num_updates"], changed["weight_steps"] = due, updates, steps
    if type(steps) is int and state["weight_steps"]:
        for layer in changed["layers"].values():
            layer["alive_steps"] = layer["alive_steps"] // state["weight_steps"] * steps
    when = sparsifier._groups[0].algorithm.when
    try:
        sparsifier.load_state_dict(changed)
    except ValueError:
        assert (due, updates, steps) != (state["groups"][0]["next_update"], state["num_updates"], state["weight_steps"])
    else:
        assert due == when.following(steps + 1) or (when(due) and due <= steps)
        passed = [moment for moment in range(41) if when(moment) and moment <= steps and (due is None or moment < due)]
        assert bool(passed) <= updates <= len(passed)
    finally:
        sparsifier.load_state_dict(state)


@functools.cache
def stopped_at(recipe, stop):
    model = mlp()
    optimizer = sgd(model)
    settings = {} if recipe is regrow.snip else {"total_steps": 40, "every": 4}
    sparsifier = regrow.attach(model, optimizer, recipe(sparsity=0.8, **settings), seed=3)
    train(model, optimizer, range(stop))
    return sparsifier, sparsifier.state_dict()


def test_an_update_that_waits_for_a_finite_gradient_is_taken_up() -> None:
    model, optimizer, sparsifier = build(regrow.rigl)
    train(model, optimizer, range(4))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, math.nan)
        optimizer.step()
    state = sparsifier.state_dict()
    assert (state["weight_steps"], state["groups"][0]["next_update"]) == (6, 4)
    sparsifier.load_state_dict(state)
    assert sparsifier.state_dict()["groups"] == state["groups"]


@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.snfs, regrow.set_])
def test_a_state_of_another_sparsity_is_refused_and_nothing_changes(recipe) -> None:
    model, other = mlp(), mlp()
    sparsifier = regrow.attach(
        model, sgd(model), recipe(sparsity=0.5, total_steps=20, every=np.int64(2)), seed=np.int64(3)
    )
    saved = regrow.attach(other, sgd(other), recipe(sparsity=0.9, total_steps=20, every=2)).state_dict()
    before = copy.deepcopy(model.state_dict())
    name = sparsifier._groups[0].algorithm.name
    with pytest.raises(ValueError, match=rf"its {name} ends at sparsity 0\.9, the one here at 0\.5; attach with"):
        sparsifier.load_state_dict(saved)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sparsifier.load_state_dict(sparsifier.state_dict())  # numbers of numpy come back


@pytest.mark.parametrize("recipe", [regrow.snip, lambda sparsity: regrow.gradual_pruning(sparsity=sparsity, **RAMP)])
def test_a_finished_state_of_another_sparsity_is_refused(recipe) -> None:
    model = mlp()
    optimizer = sgd(model)
    finished = regrow.attach(model, optimizer, recipe(sparsity=0.9))
    train(model, optimizer, range(20))
    other = mlp()
    sparsifier = regrow.attach(other, sgd(other), recipe(sparsity=0.5))
    with pytest.raises(ValueError, match=r"ends at sparsity 0\.9, the one here at 0\.5"):
        sparsifier.load_state_dict(finished.state_dict())
    assert sparsifier.sparsity == 0


def test_a_state_of_another_distribution_is_refused_also_where_the_totals_agree() -> None:
    shapes = {"0.weight": (24, 12), "2.weight": (16, 24), "4.weight": (5, 16)}
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    states = []
    for numbers in ((56, 64, 30), (60, 60, 30)):
        for mask, number in zip(masks.values(), numbers, strict=True):
            mask.zero_().view(-1)[:number] = True
        model = mlp()
        record = regrow.with_densities(regrow.rigl(sparsity=0.8, total_steps=20), masks)
        states.append(regrow.attach(model, sgd(model), record))
    with pytest.raises(ValueError, match=r"has 56 alive weights, and '0\.weight' keeps 60 here"):
        states[1].load_state_dict(states[0].state_dict())


@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.rigl_sm])
def test_blocks_that_are_short_are_counted_as_any_other(recipe) -> None:
    """Five outputs in blocks of four: how many weights live depends on which blocks do, how many blocks does not."""
    record = dataclasses.replace(recipe(sparsity=0.8, total_steps=40, every=2), pattern=regrow.output_blocks(4))
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, record, strict=True)
    blocks, before = units(sparsifier), dict(sparsifier.num_alive)
    train(model, optimizer, range(20))
    assert sum(units(sparsifier).values()) == sum(blocks.values())
    assert sparsifier.num_alive != before
    fresh = mlp()
    resumed = regrow.attach(fresh, sgd(fresh), record)
    resumed.load_state_dict(sparsifier.state_dict())
    assert resumed.num_alive == sparsifier.num_alive


def units(sparsifier: regrow.Sparsifier) -> dict[str, int]:
    pattern = sparsifier._groups[0].algorithm.pattern
    return {name: int(pattern.units(mask).sum()) for name, mask in sparsifier.masks.items()}


def test_a_state_of_other_blocks_is_refused_in_blocks() -> None:
    record = dataclasses.replace(regrow.static(sparsity=0.0), pattern=regrow.output_blocks(4))
    states = []
    for first, second in ((12, 4), (4, 8)):
        masks = {"0.weight": torch.zeros(24, 12).bool(), "2.weight": torch.zeros(16, 24).bool()}
        masks["0.weight"][:first] = masks["2.weight"][:second] = True
        model = mlp()
        states.append(regrow.attach(model, sgd(model), regrow.starting_from(record, masks), exclude="4"))
    with pytest.raises(ValueError, match=r"has 36 alive 4x1 blocks, and '0\.weight' keeps 12 here"):
        states[1].load_state_dict(states[0].state_dict())


def no_future(step: int) -> float:
    if step > 3:
        raise RuntimeError("not known yet")
    return 0.1 * step


@pytest.mark.parametrize(("schedule", "final"), [(lambda step: 0.1 * min(step, 8), 0.8), (no_future, None)])
def test_a_schedule_of_ones_own_says_its_end_where_it_knows_it(schedule, final) -> None:
    model = mlp()
    pruning = regrow.gradual_pruning(sparsity=0.9, **RAMP)
    assert pruning.when.last >= 8
    sparsifier = regrow.attach(model, sgd(model), dataclasses.replace(pruning, sparsity=schedule))
    saved = sparsifier.state_dict()
    assert saved["groups"][0]["sparsity"] == (None if final is None else pytest.approx(final))
    sparsifier.load_state_dict(saved)
    if final is not None:
        saved["groups"][0]["sparsity"] = 0.5
        with pytest.raises(ValueError, match=r"ends at sparsity 0\.5"):
            sparsifier.load_state_dict(saved)


def test_a_state_from_before_groups_said_their_sparsity_is_read() -> None:
    _, _, sparsifier = build(regrow.rigl)
    saved = sparsifier.state_dict()
    for group in saved["groups"]:
        del group["sparsity"]
    sparsifier.load_state_dict(saved)


@pytest.mark.parametrize("garbage", [None, 3, [], {}, "text"])
def test_garbage_is_refused(garbage) -> None:
    _, _, sparsifier = build(regrow.rigl)
    with pytest.raises(ValueError, match="not a state of a sparsifier"):
        sparsifier.load_state_dict(garbage)
