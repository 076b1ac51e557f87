"""What is made of a recipe: longer runs, other beginnings, channels as the unit."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from nets import batch, convnet, mlp, sgd
from nets import train as loop
from torch import Tensor, nn
from torch.nn import functional as F

import regrow

STEPS = 12


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


RECIPES: list[Callable[..., regrow.Algorithm]] = [regrow.set_, regrow.rigl, regrow.snfs, regrow.rigl_sg, regrow.rigl_sm]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_longer_run_stretches_the_end_of_the_updates_and_nothing_else(recipe) -> None:
    """Mx: a matter of total_steps (epochs and learning rate are the loop's)."""
    once, twice = (recipe(sparsity=0.9, total_steps=times * 1000) for times in (1, 2))
    assert (once.when.stop, twice.when.stop) == (750, 1500)
    assert (once.when.interval, once.when.start) == (twice.when.interval, twice.when.start) == (100, 100)
    assert (once.fraction.initial, twice.fraction.initial) == (0.3, 0.3)
    assert twice.fraction.end == 1500
    assert dataclasses.replace(twice, when=once.when, fraction=once.fraction) == once
    assert regrow.train_flops(twice, 10.0, 100.0) == regrow.train_flops(once, 10.0, 100.0)


def test_rigl_starts_from_the_final_mask_of_another_run_or_from_its_densities() -> None:
    model = mlp()
    optimizer = sgd(model)
    dynamic = {"sparsity": 0.8, "total_steps": STEPS, "every": 2}
    earlier = regrow.attach(model, optimizer, regrow.rigl_sm(distribution=regrow.uniform, **dynamic))
    uniform = earlier.num_alive
    loop(model, optimizer, range(STEPS))
    masks, counts = earlier.masks, earlier.num_alive
    assert counts != uniform
    for again, begins_there in ((regrow.starting_from, True), (regrow.with_densities, False)):
        model = mlp()
        optimizer = sgd(model)
        sparsifier = regrow.attach(model, optimizer, again(regrow.rigl(**dynamic), masks), strict=True)
        assert sparsifier.num_alive == counts
        assert equal(sparsifier.masks, masks) == begins_there
        loop(model, optimizer, range(STEPS))
        assert sparsifier.num_alive == counts
        assert sparsifier.num_updates > 0
        assert not equal(sparsifier.masks, masks)


def test_masks_that_do_not_fit_or_a_sparsity_that_moves_are_refused() -> None:
    masks = {"0.weight": torch.ones(24, 12, dtype=torch.bool)}
    model = mlp()
    recipe = regrow.starting_from(regrow.rigl(sparsity=0.5, total_steps=9), masks)
    with pytest.raises(ValueError, match=r"no mask of shape \(16, 24\) is given for layer '2.weight'"):
        regrow.attach(model, sgd(model), recipe)
    with pytest.raises(ValueError, match="the sparsity of 'pruning' changes"):
        regrow.starting_from(regrow.gradual_pruning(sparsity=0.5, total_steps=2000), masks)
    with pytest.raises(ValueError, match="masks is empty"):
        regrow.from_masks({})


@pytest.mark.parametrize(
    "given",
    [regrow.from_masks, lambda masks: regrow.starting_from(regrow.static(sparsity=0.5), masks)],
    ids=["from_masks", "starting_from"],
)
def test_a_layer_whose_mask_is_all_dead_is_refused_by_name_and_may_be_left_out(given) -> None:
    model = mlp()
    masks = {name: torch.ones(layer.shape).bool() for name, layer in regrow.find_layers(model).items()}
    masks["4.weight"].zero_()
    before = model[4].weight.detach().clone()
    with pytest.raises(ValueError, match=r"'4\.weight' has no alive weight.*leave the layer out with exclude=\['4\.w"):
        regrow.attach(model, sgd(model), given(masks))
    assert torch.equal(model[4].weight, before)
    sparsifier = regrow.attach(model, sgd(model), given(masks), exclude="4.weight")
    assert equal(sparsifier.masks, {name: mask for name, mask in masks.items() if name != "4.weight"})


@pytest.mark.parametrize("distribution", [regrow.uniform, regrow.erk])
def test_rigl_struct_drops_and_grows_whole_channels_and_keeps_linear_layers_dense(distribution) -> None:
    model = convnet()
    optimizer = sgd(model)
    recipe = regrow.rigl_struct(sparsity=0.5, total_steps=STEPS, every=2, distribution=distribution)
    sparsifier = regrow.attach(model, optimizer, recipe, strict=True)
    convolutions = {n: layer for n, layer in regrow.find_layers(model).items() if layer.is_convolution}
    counts = distribution(convolutions, 0.5)
    # A layer's density is that which its own shape gives it, not that of a row of channels.
    channels = {n: round(counts[n] / layer.size * layer.shape[0]) for n, layer in convolutions.items()}
    first, seen = sparsifier.masks, []

    def each(step: int) -> None:
        for name, mask in sparsifier.masks.items():
            if name in channels:
                filters = mask.flatten(1)
                assert torch.equal(filters.any(dim=1), filters.all(dim=1))
                assert int(filters.any(dim=1).sum()) == channels[name]
            else:
                assert bool(mask.all())
        seen.append(sparsifier.masks)

    loop(model, optimizer, range(STEPS), each, shape=(8, 3, 8, 8))
    assert sparsifier.num_updates > 0
    assert any(not equal(first, masks) for masks in seen)


def test_rigl_struct_leaves_transposed_convolutions_dense_whose_first_dimension_is_of_inputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3))
    masks = regrow.attach(model, sgd(model), regrow.rigl_struct(sparsity=0.5, total_steps=STEPS)).masks
    assert masks["0.weight"].flatten(1).any(dim=1).sum() == 4
    assert masks["2.weight"].all()
    model = nn.Sequential(nn.ConvTranspose1d(8, 4, 3))
    with pytest.raises(ValueError, match=r"none of the layers 0\.weight is a convolution"):
        regrow.attach(model, sgd(model), regrow.rigl_struct(sparsity=0.5, total_steps=STEPS))


def test_rigl_struct_drops_the_smallest_filters_and_grows_the_largest_gradients() -> None:
    model = convnet()
    optimizer = sgd(model)
    recipe = regrow.rigl_struct(sparsity=0.5, total_steps=100, every=1, drop_fraction=0.5, distribution=regrow.erk)
    sparsifier = regrow.attach(model, optimizer, recipe)
    loop(model, optimizer, range(1), shape=(8, 3, 8, 8))  # the first weight step, after which an update is due
    before = sparsifier.masks["3.weight"].flatten(1).any(dim=1)
    inputs, targets = batch(1, (8, 3, 8, 8))
    F.cross_entropy(model(inputs), targets).backward()
    weight = model[3].weight.detach().abs().flatten(1).sum(dim=1)
    gradient = model[3].weight.grad.abs().flatten(1).sum(dim=1)
    optimizer.step()
    assert sparsifier.num_updates == 1
    alive = int(before.sum())
    keep = alive - int(regrow.rigl(sparsity=0.5, total_steps=100, drop_fraction=0.5).fraction(1) * alive)
    kept = torch.where(before, weight, -1).topk(keep).indices
    grown = gradient.index_fill(0, kept, -1).topk(alive - keep).indices
    after = sparsifier.masks["3.weight"].flatten(1).any(dim=1).nonzero().flatten()
    assert set(after.tolist()) == {*kept.tolist(), *grown.tolist()}


def test_rigl_struct_costs_as_rigl_and_needs_a_convolution() -> None:
    struct, rigl = (recipe(sparsity=0.9, total_steps=1000) for recipe in (regrow.rigl_struct, regrow.rigl))
    assert regrow.train_flops(struct, 10.0, 100.0) == regrow.train_flops(rigl, 10.0, 100.0)
    model = mlp()
    with pytest.raises(ValueError, match="is a convolution whose weight has its outputs first"):
        regrow.attach(model, sgd(model), struct)


def test_a_structured_run_can_be_begun_from_an_earlier_ones_channels() -> None:
    model = convnet()
    optimizer = sgd(model)
    struct = regrow.rigl_struct(sparsity=0.5, total_steps=STEPS, every=2)
    earlier = regrow.attach(model, optimizer, struct)
    loop(model, optimizer, range(STEPS), shape=(8, 3, 8, 8))
    masks = earlier.masks
    model = convnet()
    sparsifier = regrow.attach(model, sgd(model), regrow.starting_from(struct, masks))
    assert equal(sparsifier.masks, masks)
