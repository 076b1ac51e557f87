"""Patterns that fill: constant fan-in and N:M have their exact number in every row or run, whatever an update does."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from dead import both
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import convnet, mlp, sgd, train
from torch import nn

import regrow
from regrow.parts.patterns import Pattern, constant_fan_in, n_of_m


def wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))


def in_groups(pattern: Pattern, mask: torch.Tensor) -> torch.Tensor:
    assert pattern.group is not None
    dimension, members = pattern.group(tuple(mask.shape))
    return mask.movedim(dimension, -1).reshape(-1, members).sum(1)


@both
@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.set_])
@pytest.mark.parametrize("build", [mlp, convnet])
def test_every_row_keeps_its_number_through_every_update(recipe: Any, build: Any, storage: Any) -> None:
    model = build()
    optimizer = sgd(model)
    record = replace(recipe(sparsity=0.8, total_steps=60, every=2), pattern=constant_fan_in)
    sparsifier = regrow.attach(model, optimizer, record, storage=storage, strict=True)
    before = sparsifier.masks
    shape = (32, 12) if build is mlp else (16, 3, 8, 8)
    for step in range(12):
        train(model, optimizer, range(step, step + 1), shape=shape)
        for mask in sparsifier.masks.values():
            rows = in_groups(constant_fan_in, mask)
            assert rows.unique().numel() == 1
            assert rows[0] >= 1
    assert sparsifier.num_updates >= 3
    assert any(not torch.equal(mask, before[name]) for name, mask in sparsifier.masks.items())


@both
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.set_])
def test_every_run_keeps_n_of_m(recipe: Any, n: int, m: int, storage: Any) -> None:
    model = wide()
    optimizer = sgd(model)
    record = recipe(sparsity=1 - n / m, total_steps=60, every=2, distribution=regrow.uniform)
    sparsifier = regrow.attach(model, optimizer, replace(record, pattern=n_of_m(n, m)), storage=storage, strict=True)
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    for step in range(12):
        train(model, optimizer, range(step, step + 1))
        assert all((in_groups(n_of_m(n, m), mask) == n).all() for mask in sparsifier.masks.values())
    assert any(not torch.equal(mask, before[name]) for name, mask in sparsifier.masks.items())


def test_pruning_to_a_pattern_ends_in_it() -> None:
    model = wide()
    optimizer = sgd(model)
    record = regrow.gradual_pruning(
        sparsity=0.75, total_steps=40, every=2, start=2, stop=20, scope="layer", distribution=regrow.uniform
    )
    sparsifier = regrow.attach(model, optimizer, replace(record, pattern=constant_fan_in), strict=True)
    train(model, optimizer, range(30))
    for name, mask in sparsifier.masks.items():
        assert (in_groups(constant_fan_in, mask) == round(0.25 * mask.shape[1])).all(), name


@given(
    rows=st.integers(1, 5),
    members=st.integers(1, 6),
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
    each=st.integers(1, 6),
)
@settings(deadline=None)
def test_the_choice_is_the_best_that_the_groups_have_room_for(
    rows: int, members: int, seed: int, share: float, each: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, members), generator=generator).float()
    among = torch.rand((rows, members), generator=generator) < share
    beside = ~among & (torch.rand((rows, members), generator=generator) < 0.3)
    each = min(each, members)
    count = int(torch.randint(0, rows * members + 1, (), generator=generator))
    found = constant_fan_in.choose(scores, count, among, each * rows, beside)
    room = [max(0, each - int(beside[row].sum())) for row in range(rows)]
    wanted = set[tuple[int, int]]()
    for score, row, column in sorted((-float(scores[r, c]), r, c) for r, c in among.nonzero().tolist()):
        del score
        if len(wanted) < count and room[row]:
            room[row] -= 1
            wanted.add((row, column))
    assert {(row, column) for row, column in found.nonzero().tolist()} == wanted


def test_what_a_pattern_cannot_have_is_refused_in_words() -> None:
    model, rigl = wide(), regrow.rigl(sparsity=0.5, total_steps=60, distribution=regrow.uniform)
    cases = {
        "cannot have the pattern '2:4' at sparsity 0.8.*2:4 has .* alive, sparsity 0.5": replace(
            rigl, sparsity=regrow.schedules.Constant(0.8), pattern=n_of_m(2, 4)
        ),
        r"12 inputs are no groups of 5; leave the layer out with exclude=\['0.weight'\]": replace(
            rigl, sparsity=regrow.schedules.Constant(0.8), pattern=n_of_m(1, 5)
        ),
    }
    for message, record in cases.items():
        with pytest.raises(ValueError, match=message):
            regrow.attach(model, sgd(model), record)
    with pytest.raises(ValueError, match="scope='global' gives a layer any number"):
        replace(regrow.snip(sparsity=0.5), pattern=constant_fan_in)
    with pytest.raises(ValueError, match="a redistribution gives a layer any number"):
        replace(regrow.rigl_sg(sparsity=0.5, total_steps=60), pattern=constant_fan_in)
    with pytest.raises(ValueError, match="2:2 is no pattern"):
        n_of_m(2, 2)
    transposed = nn.Sequential(nn.ConvTranspose2d(4, 6, 3))
    with pytest.raises(ValueError, match="as a transposed convolution"):
        regrow.attach(transposed, sgd(transposed), replace(rigl, pattern=constant_fan_in))


def test_given_masks_of_another_pattern_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    rigl = regrow.rigl(sparsity=0.5, total_steps=60)
    record = replace(regrow.starting_from(rigl, {"0.weight": mask}), pattern=constant_fan_in)
    with pytest.raises(ValueError, match=r"the mask of '0.weight' does not have the pattern 'constant fan-in'"):
        regrow.attach(model, sgd(model), record)
