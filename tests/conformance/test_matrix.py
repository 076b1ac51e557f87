"""The matrix: recipes × optimizers × precisions × loop shapes.

Every recipe meets every optimizer, and every two values of any two axes meet in some case; with --slow, every recipe
meets every optimizer in every loop shape.
"""

from itertools import cycle, product

import pytest
import torch
from conformance.axes import LOOPS, OPTIMIZERS, PRECISIONS, RECIPES, covering
from conformance.training_loop import Ledger, dead_entries, setup, train

import regrow

CASES = covering(list(OPTIMIZERS), list(RECIPES), list(LOOPS), list(PRECISIONS))


def conforms(optimizer: str, recipe: str, loop: str, precision: str) -> None:
    made = setup(optimizer, precision, loop)
    ledger = None

    def attach() -> None:
        nonlocal ledger
        record = RECIPES[recipe]
        ledger = Ledger(record, regrow.attach(made.model, made.optimizer, record.algorithm, strict=True))

    train(made, precision, loop, attach, each=lambda call, skipped: ledger(call, skipped))
    assert all(bool(parameter.isfinite().all()) for parameter in made.model.parameters())
    assert ledger.num_updates == len(RECIPES[recipe].updates)
    # Of four updates the last replaces nothing, as the cosine ends there; another may grow what it has dropped.
    assert ledger.changes >= (0 if recipe == "static" else 1 if recipe == "snip" else 2)


@pytest.mark.parametrize(("optimizer", "recipe", "loop", "precision"), CASES)
def test_pairs(optimizer: str, recipe: str, loop: str, precision: str) -> None:
    conforms(optimizer, recipe, loop, precision)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_infinite_gradient_of_a_dead_weight_changes_nothing(optimizer: str) -> None:
    """Nor does NaN: the alive weights of a run with both are bit-identical to those of a run without."""
    models = []
    for plant in (0.0, torch.inf, torch.nan):
        made = setup(optimizer, "fp32", "clip-norm")
        models.append(made.model)

        def attach(made=made, plant=plant) -> None:
            sparsifier = regrow.attach(made.model, made.optimizer, RECIPES["static"].algorithm, strict=True)
            name, mask = list(sparsifier.masks.items())[-1]
            added = torch.zeros(mask.shape)
            added[tuple((~mask).nonzero()[0])] = plant
            made.model.get_parameter(name).register_hook(lambda gradient: gradient + added)

        train(made, "fp32", "clip-norm", attach)
    for other in models[1:]:
        for name, value in models[0].named_parameters():
            assert torch.equal(value, other.get_parameter(name)), name


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_full_product(recipe: str) -> None:
    for (optimizer, loop), precision in zip(product(OPTIMIZERS, LOOPS), cycle(PRECISIONS)):
        conforms(optimizer, recipe, loop, precision)


@pytest.mark.parametrize(("optimizer", "loop", "precision"), covering(list(OPTIMIZERS), list(LOOPS), list(PRECISIONS)))
def test_a_static_mask_is_what_masking_by_hand_gives(optimizer: str, loop: str, precision: str) -> None:
    """Alive weights, norms and biases are bit-identical to those of a loop that masks gradients and weights itself."""
    made, twin = setup(optimizer, precision, loop), setup(optimizer, precision, loop)
    sparsifier = None

    def attach() -> None:
        nonlocal sparsifier
        sparsifier = regrow.attach(made.model, made.optimizer, RECIPES["static"].algorithm)

    train(made, precision, loop, attach)
    masks = sparsifier.masks

    def mask_weights(*_: object) -> None:
        with torch.no_grad():
            for name, mask in masks.items():
                twin.model.get_parameter(name).masked_fill_(~mask, 0)

    def mask_gradients() -> None:
        for name, mask in masks.items():
            gradient = twin.model.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(~mask, 0)

    train(twin, precision, loop, mask_weights, mask_gradients, mask_weights)
    for (name, value), other in zip(made.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(value, other), name
    assert any(bool(dead.numel()) for _, dead, _ in dead_entries(sparsifier))
