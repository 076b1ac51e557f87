"""Save, load, go on: bit-identical; and a state that does not fit is refused before anything changes."""

import copy
import dataclasses
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import convnet, mlp, sgd, train

import regrow
from regrow.state import pack, unpack

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
        ((*LAYER, "alive_steps"), -5, "'alive_steps'"),
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


def test_a_schedule_of_ones_own_says_no_final_sparsity_and_is_saved() -> None:
    model = mlp()
    record = dataclasses.replace(
        regrow.gradual_pruning(sparsity=0.9, **RAMP), sparsity=[0.1 * i for i in range(9)].__getitem__
    )
    sparsifier = regrow.attach(model, sgd(model), record)
    saved = sparsifier.state_dict()
    assert saved["groups"][0]["sparsity"] is None
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
