"""``sparsifier.on_update``: what an update did, in either storage, and what has been explored so far."""

from typing import Any

import pytest
import torch
from dead import both
from nets import mlp, sgd, train

import regrow
from regrow.training.update_record import Update


def rigl(**changes: Any) -> regrow.Algorithm:
    return regrow.rigl(**{"sparsity": 0.8, "total_steps": 40, "every": 3, **changes})


@both
@pytest.mark.parametrize("recipe", [rigl, regrow.rigl_sg, regrow.set_, regrow.gradual_pruning])
def test_a_record_says_what_the_masks_show(recipe: Any, storage: Any) -> None:
    model = mlp()
    optimizer = sgd(model)
    start = {"start": 3} if recipe is regrow.gradual_pruning else {}
    record = recipe(sparsity=0.8, total_steps=40, every=3, **start)
    sparsifier = regrow.attach(model, optimizer, record, storage=storage)
    known = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    ever = {name: mask.clone() for name, mask in known.items()}
    updates = list[Update]()

    def look(update: Update) -> None:
        updates.append(update)
        assert (update.number, update.weight_steps) == (sparsifier.num_updates, sparsifier.weight_steps)
        for name, change in update.layers.items():
            before, now = known[name], sparsifier.masks[name]
            ever[name] |= now
            assert (change.size, change.before, change.alive) == (now.numel(), int(before.sum()), int(now.sum()))
            assert (change.dropped, change.grown) == (int((before & ~now).sum()), int((now & ~before).sum()))
            assert change.overlap == pytest.approx(int((before & now).sum()) / int(before.sum()))
            assert change.explored == sparsifier.explored[name] == int(ever[name].sum()) / ever[name].numel()
            assert not model.state_dict()[name][~now].any()
            known[name] = now.clone()
        assert update.dropped == sum(change.dropped for change in update.layers.values())
        assert update.grown == sum(change.grown for change in update.layers.values())

    handle = sparsifier.on_update(look)
    train(model, optimizer, range(14))
    assert len(updates) == sparsifier.num_updates >= 3
    assert any(update.dropped for update in updates)
    handle.remove()
    train(model, optimizer, range(14, 20))
    assert sparsifier.num_updates > len(updates)


@both
def test_what_has_been_explored_is_in_the_state(storage: Any) -> None:
    model, other = mlp(), mlp()
    optimizer, its = sgd(model), sgd(other)
    sparsifier = regrow.attach(model, optimizer, rigl(), storage=storage)
    train(model, optimizer, range(10))
    resumed = regrow.attach(other, its, rigl(), storage=storage)
    assert resumed.explored != sparsifier.explored
    other.load_state_dict(model.state_dict())
    its.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(sparsifier.state_dict())
    assert resumed.explored == sparsifier.explored
    assert all(share > 0.2 for share in sparsifier.explored.values())


def test_a_damaged_record_of_what_was_explored_is_refused() -> None:
    model = mlp()
    sparsifier = regrow.attach(model, sgd(model), rigl())
    for odd in (torch.zeros(3, dtype=torch.uint8), "text", sparsifier.state_dict()["layers"]["0.weight"]["mask"] * 0):
        state = sparsifier.state_dict()
        state["layers"]["0.weight"]["explored"] = odd
        with pytest.raises(ValueError, match=r"'0\.weight' has explored is not its alive weights and others"):
            sparsifier.load_state_dict(state)


def test_what_a_listener_raises_comes_after_the_update() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, rigl(), strict=True)

    def fail(update: Update) -> None:
        raise KeyError(update.number)

    handle = sparsifier.on_update(fail)
    with pytest.raises(KeyError):
        train(model, optimizer, range(6))
    handle.remove()
    train(model, optimizer, range(6, 12))
    assert sparsifier.num_updates == 2
