"""IMP: exact counts, nested masks, bit-identical rewinding; levels that lie on disk are not trained again."""

import copy
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import batch, mlp, sgd
from nets import train as loop
from torch import nn

import regrow
from regrow.checksummed_files import seal, unseal
from regrow.layers import find_layers
from regrow.procedures.tickets import rewind_step

STEPS = 12


def net() -> nn.Sequential:
    """With dropout, so that the random generator is part of what is rewound."""
    torch.manual_seed(0)
    return nn.Sequential(*mlp(), nn.Dropout(0.1))


class Trainee:
    """A model, its optimizer and schedule, a user's loop, and a note of what the loop was given."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = net() if model is None else model
        self.optimizer = sgd(self.model)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [5, 9], gamma=0.5)
        self.calls: list[tuple[int, int]] = []
        self.begun: list[dict[str, object]] = []

    def train(self, first: int, last: int) -> None:
        self.calls.append((first, last))
        state = (self.model.state_dict(), self.optimizer.state_dict(), self.scheduler.state_dict())
        self.begun.append(copy.deepcopy(dict(zip(("model", "optimizer", "scheduler"), state, strict=True))))
        loop(self.model, self.optimizer, range(first, last), each=lambda step: self.scheduler.step())

    def prune(self, levels: int = 3, **options):
        return regrow.iterative_pruning(
            self.model, self.optimizer, self.train, total_steps=STEPS, levels=levels, others=[self.scheduler], **options
        )


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_are_exact_and_masks_nested(scope) -> None:
    trainee = Trainee()
    before = {name: torch.ones(layer.shape, dtype=torch.bool) for name, layer in find_layers(trainee.model).items()}
    size = sum(mask.numel() for mask in before.values())
    for ticket in trainee.prune(levels=4, scope=scope):
        alive = {name: int(mask.sum()) for name, mask in ticket.masks.items()}
        if scope == "global":
            assert sum(alive.values()) == math.floor(size * 8**ticket.level / 10**ticket.level)
        else:
            assert alive == {n: math.floor(m.numel() * 8**ticket.level / 10**ticket.level) for n, m in before.items()}
        assert ticket.density == sum(alive.values()) / size
        assert all(not bool((mask & ~before[name]).any()) for name, mask in ticket.masks.items())
        before = ticket.masks
        weights = dict(trainee.model.named_parameters())
        assert all(not bool(weights[name][~mask].any()) for name, mask in ticket.masks.items())


@pytest.mark.parametrize(("rewind", "step"), [(0, 0), (4, 4), (0.25, 3)])
def test_every_level_starts_from_the_saved_state_bit_for_bit(rewind, step) -> None:
    plain = Trainee()
    plain.train(0, step)
    saved, optimizer, rate = plain.model.state_dict(), plain.optimizer.state_dict(), plain.scheduler.state_dict()
    trainee = Trainee()
    tickets = list(trainee.prune(rewind=rewind))
    assert trainee.calls == [(0, step)] * bool(step) + [(step, STEPS)] * 4
    for ticket, begun in zip(tickets, trainee.begun[bool(step) :], strict=True):
        for name, value in saved.items():
            mask = ticket.masks.get(name, torch.ones_like(value, dtype=torch.bool))
            assert torch.equal(begun["model"][name][mask], value[mask])
            assert not begun["model"][name][~mask].any()
        assert begun["scheduler"] == rate
        assert begun["optimizer"]["param_groups"] == optimizer["param_groups"]
        assert begun["optimizer"]["state"].keys() == optimizer["state"].keys()


def test_the_dense_level_is_plain_training_and_a_ticket_trains_again_the_same() -> None:
    plain = Trainee()
    plain.train(0, STEPS)
    trainee = Trainee()
    tickets = list(trainee.prune(rewind=4))
    assert same(tickets[0].trained.state["objects"][0], plain.model.state_dict())
    last = tickets[-1]
    last.start.restore()
    sparsifier = regrow.attach(trainee.model, trainee.optimizer, regrow.from_masks(last.masks))
    trainee.train(4, STEPS)
    sparsifier.detach()
    assert same(trainee.model.state_dict(), last.trained.state["objects"][0])


def test_each_level_prunes_the_smallest_trained_weights() -> None:
    first, second = list(Trainee().prune(levels=1))
    weights = first.trained.state["objects"][0]
    alive = torch.cat([weights[name][mask].abs() for name, mask in second.masks.items()])
    pruned = torch.cat([weights[name][~mask].abs() for name, mask in second.masks.items()])
    assert alive.min() >= pruned.max()


def test_fine_tuning_goes_on_from_the_trained_weights() -> None:
    trainee = Trainee()
    tickets = list(trainee.prune(levels=2, rewind=None, fine_tune_steps=5))
    assert trainee.calls == [(0, 12), (12, 17), (17, 22)]
    for before, after, begun in zip(tickets, tickets[1:], trainee.begun[1:], strict=False):
        for name, mask in after.masks.items():
            assert torch.equal(begun["model"][name], before.trained.state["objects"][0][name] * mask)


def test_what_happens_to_the_model_between_levels_does_not_matter() -> None:
    undisturbed = list(Trainee().prune(levels=2))
    trainee, disturbed = Trainee(), []
    for ticket in trainee.prune(levels=2):
        disturbed.append(ticket)
        trainee.train(0, 3)
    for one, other in zip(undisturbed, disturbed, strict=True):
        assert same(one.trained.state["objects"][0], other.trained.state["objects"][0])


def test_the_mode_between_levels_does_not_matter(tmp_path: Path) -> None:
    """A loop that leaves train() to the first of its calls, and a net that is evaluated after every level."""
    undisturbed = list(Trainee().prune(levels=2))
    trainee, disturbed = Trainee(), []
    for ticket in trainee.prune(levels=2, folder=tmp_path):
        disturbed.append(ticket)
        assert all(module.training for module in trainee.model.modules())
        trainee.model.eval()
    again = Trainee()
    again.model.eval()
    resumed = list(again.prune(levels=2, folder=tmp_path))
    assert all(module.training for module in again.model.modules())
    for one, *others in zip(undisturbed, disturbed, resumed, strict=True):
        assert all(same(one.trained.state["objects"][0], other.trained.state["objects"][0]) for other in others)


def test_a_snapshot_brings_back_modes_and_older_ones_leave_them() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[1].eval()
    snapshot = regrow.Snapshot(model)
    model.eval()
    snapshot.restore()
    assert [module.training for module in model.modules()] == [True, True, False]
    older = {key: value for key, value in snapshot.state.items() if key != "modes"}
    model.eval()
    regrow.Snapshot.of_state(older, model).restore()
    assert not any(module.training for module in model.modules())


class MicroBatches(Trainee):
    """Steps at every second batch, so that the odd number of them leaves a gradient behind."""

    def train(self, first: int, last: int) -> None:
        self.calls.append((first, last))
        for step in range(first, last):
            inputs, targets = batch(step)
            nn.functional.cross_entropy(self.model(inputs), targets).backward()
            if step % 2:
                self.optimizer.step()
                self.optimizer.zero_grad()
        inputs, targets = batch(last)
        nn.functional.cross_entropy(self.model(inputs), targets).backward()


def test_gradients_that_a_loop_leaves_do_not_enter_the_next_level(tmp_path: Path) -> None:
    undisturbed = list(MicroBatches().prune(levels=2))
    next(MicroBatches().prune(levels=2, folder=tmp_path))
    resumed = list(MicroBatches().prune(levels=2, folder=tmp_path))
    for one, other in zip(undisturbed, resumed, strict=True):
        assert same(one.trained.state["objects"][0], other.trained.state["objects"][0])


def test_a_generator_is_rewound_and_taken_up(tmp_path: Path) -> None:
    def noisy(folder: Path | None, stop: int) -> list[torch.Tensor]:
        model, generator, found = mlp(), torch.Generator().manual_seed(3), []
        optimizer = sgd(model)

        def train(first: int, last: int) -> None:
            for _ in range(first, last):
                inputs, targets = torch.randn(8, 12, generator=generator), torch.randint(5, (8,), generator=generator)
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()

        options = {"total_steps": 4, "levels": 2, "rewind": 1, "others": [generator], "folder": folder}
        for ticket in regrow.iterative_pruning(model, optimizer, train, **options):
            found.append(model[0].weight.detach().clone())
            if ticket.level == stop:
                break
        return found

    undisturbed = noisy(None, 2)
    noisy(tmp_path, 0)
    assert all(torch.equal(one, other) for one, other in zip(undisturbed, noisy(tmp_path, 2), strict=True))


def test_what_has_no_state_to_go_back_to_is_refused() -> None:
    trainee = Trainee()
    prune = partial(regrow.iterative_pruning, trainee.model, trainee.optimizer, trainee.train, total_steps=4, levels=1)
    with pytest.raises(ValueError, match=r"others is a MultiStepLR; expected a list, such as others=\[scheduler\]"):
        prune(others=trainee.scheduler)
    with pytest.raises(ValueError, match=r"a Random has no state to go back to; expected a torch\.Generator, or"):
        prune(others=[random.Random(3)])


def test_a_level_on_disk_is_not_trained_again(tmp_path: Path) -> None:
    first = Trainee()
    before = list(first.prune(rewind=4, folder=tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *(f"level-0{level}.pt" for level in range(4)),
        "start.pt",
    ]
    (tmp_path / "level-02.pt").unlink()
    again = Trainee()
    after = list(again.prune(rewind=4, levels=4, folder=tmp_path))
    assert again.calls == [(4, STEPS)] * 2  # the level that was deleted, and the one more
    for one, other in zip(before, after, strict=False):
        assert same(one.masks, other.masks)
        assert same(one.trained.state["objects"][0], other.trained.state["objects"][0])
    assert same(again.model.state_dict(), after[-1].trained.state["objects"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"fraction": 0.5}, "fraction 0.2, here it is 0.5"), ({"rewind": 3}, "rewind_step 4, here it is 3")],
)
def test_a_folder_of_another_procedure_is_refused(tmp_path: Path, change, message) -> None:
    list(Trainee().prune(levels=0, rewind=4, folder=tmp_path))
    with pytest.raises(ValueError, match=message):
        list(Trainee().prune(**({"levels": 0, "rewind": 4, "folder": tmp_path} | change)))


def test_a_folder_of_another_initialisation_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    list(Trainee().prune(levels=0, folder=tmp_path))
    with pytest.raises(ValueError, match="initial weights"):
        list(Trainee(mlp(seed=1)).prune(levels=0, folder=tmp_path))
    file = tmp_path / "level-00.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"level-00\.pt .*: delete it to train the level anew"):
        list(Trainee().prune(levels=0, folder=tmp_path))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("levels")
    list(Trainee().prune(levels=1, folder=folder))
    return folder


@pytest.mark.parametrize("name", ["start", "level-00", "level-01"])
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_no_flipped_bit_gives_another_ticket(written: Path, name: str, share: float) -> None:
    file = written / f"{name}.pt"
    sound = file.read_bytes()
    content, bit = bytearray(sound), int(share * 8 * len(sound))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    try:
        with pytest.raises(ValueError, match=rf"{name}\.pt .*: delete it to train the level anew") as error:
            list(Trainee().prune(levels=1, folder=written))
    finally:
        file.write_bytes(sound)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda output: output.clear(),
        lambda output: output.update(snapshot=3),
        lambda output: output["snapshot"].update(objects=[]),
        lambda output: output["snapshot"]["objects"].__setitem__(1, {"state": 3}),
        lambda output: output["snapshot"]["objects"][0].popitem(),
        lambda output: output["snapshot"].update(random=torch.zeros(3)),
        lambda output: output.update(masks=[1]),
        lambda output: output["masks"].popitem(),
        lambda output: output["masks"].update({"0.weight": torch.zeros(1, dtype=torch.uint8)}),
    ],
)
def test_a_level_that_cannot_be_taken_up_is_refused_in_a_line(written: Path, tmp_path: Path, change) -> None:
    for name in ("start", "level-00"):
        (tmp_path / f"{name}.pt").write_bytes((written / f"{name}.pt").read_bytes())
    file = tmp_path / "level-00.pt"
    content = unseal(file, "stage", 2)
    change(content["output"])
    with file.open("wb") as opened:
        seal(opened, "stage", 2, content)
    with pytest.raises(ValueError, match=r"level-00\.pt cannot be taken up .*: delete it") as error:
        list(Trainee().prune(levels=0, folder=tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [None, 3, {}])
def test_a_level_without_settings_is_refused(tmp_path: Path, settings) -> None:
    with (tmp_path / "start.pt").open("wb") as opened:
        seal(opened, "stage", 2, {"settings": settings, "output": {}})
    with pytest.raises(ValueError, match=r"start\.pt (holds no settings|was written with)"):
        list(Trainee().prune(levels=0, folder=tmp_path))


def test_a_folder_in_the_place_of_a_level_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "start.pt").mkdir()
    with pytest.raises(ValueError, match=r"start\.pt.*: delete it to train the level anew"):
        list(Trainee().prune(levels=0, folder=tmp_path))


def test_a_state_that_could_not_be_read_again_is_refused_before_it_counts_as_done(tmp_path: Path) -> None:
    class Odd:
        def state_dict(self) -> object:
            return Path("a path is no plain value")

        def load_state_dict(self, state: object) -> None:
            pass

    trainee = Trainee()
    tickets = regrow.iterative_pruning(
        trainee.model, trainee.optimizer, trainee.train, total_steps=3, levels=0, others=[Odd()], folder=tmp_path
    )
    with pytest.raises(ValueError, match="tensors and plain values"):
        next(tickets)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_refused_at_the_call() -> None:
    trainee = Trainee()
    for change, message in (
        ({"rewind": 12}, "rewind is 12; expected a step from 0 to 11"),
        ({"rewind": 1.0}, r"rewind is 1\.0"),
        ({"rewind": True}, "rewind is True"),
        ({"rewind": -1}, "rewind is -1"),
        ({"rewind": "0.1"}, r"rewind is '0\.1'"),
        ({"rewind": math.nan}, "rewind is nan"),
        ({"rewind": np.float64(-0.1)}, r"rewind is .*-0\.1"),
        ({"levels": -1}, "levels is -1"),
        ({"levels": 2.0}, r"levels is 2\.0; expected rounds of pruning .*, a whole number of at least 0"),
        ({"fraction": "a"}, "fraction is 'a'"),
        ({"rewind": None, "fine_tune_steps": 2.5}, r"fine_tune_steps is 2\.5; .*, a whole number"),
        ({"rewind": None, "fine_tune_steps": 0}, "fine_tune_steps is 0"),
        ({"fraction": 1.0}, r"fraction is 1\.0"),
        ({"scope": "model"}, "scope is 'model'"),
        ({"fine_tune_steps": 3}, "fine_tune_steps is 3"),
        ({"include": "nosuch"}, "matches none"),
    ):
        with pytest.raises(ValueError, match=message):
            trainee.prune(**change)
    with pytest.raises(ValueError, match="total_steps is 0"):
        regrow.iterative_pruning(trainee.model, trainee.optimizer, trainee.train, total_steps=0, levels=1)
    with pytest.raises(ValueError, match=r"total_steps is 10\.0; .*, a whole number of at least 1"):
        regrow.iterative_pruning(trainee.model, trainee.optimizer, trainee.train, total_steps=10.0, levels=1)
    line_search = torch.optim.LBFGS(trainee.model.parameters())
    with pytest.raises(ValueError, match="LBFGS cannot train a sparse net"):
        regrow.iterative_pruning(trainee.model, line_search, trainee.train, total_steps=10, levels=1, rewind=5)
    assert trainee.calls == []


@pytest.mark.parametrize(
    ("rewind", "steps", "expected"),
    [
        *((0.96, 10, 9), (0.95, 10, 9), (0.94, 10, 9), (0.99, 1, 0), (0.0, 10, 0)),
        *((np.int64(9), 10, 9), (np.float32(0.5), 10, 5), (torch.tensor(0.5), 10, 5), (torch.tensor(5), 10, 5)),
    ],
)
def test_a_share_of_the_steps_leaves_one_to_train(rewind, steps, expected) -> None:
    step = rewind_step(rewind, steps)
    assert step == expected
    assert type(step) is int


def test_numbers_of_numpy_go_into_files_as_numbers(tmp_path: Path) -> None:
    trainee = Trainee()
    numbers = {"total_steps": np.int64(STEPS), "levels": np.int32(1), "fraction": np.float64(0.2), "rewind": np.int8(2)}
    make = partial(regrow.iterative_pruning, trainee.model, trainee.optimizer, trainee.train, folder=tmp_path)
    start = copy.deepcopy(trainee.model.state_dict())
    assert [ticket.level for ticket in make(**numbers)] == [0, 1]
    calls = list(trainee.calls)
    trainee.model.load_state_dict(start)
    assert [ticket.level for ticket in make(total_steps=STEPS, levels=1, rewind=2)] == [0, 1]
    assert trainee.calls == calls


def test_a_loop_that_fails_leaves_a_plain_model() -> None:
    trainee = Trainee()

    def fails(first: int, last: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(regrow.iterative_pruning(trainee.model, trainee.optimizer, fails, total_steps=3, levels=0))
    regrow.attach(trainee.model, trainee.optimizer, regrow.static(sparsity=0.5)).detach()


VALUES = st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=30)


@given(st.lists(VALUES, min_size=1, max_size=3), st.data())
def test_pruning_takes_exactly_the_smallest_and_on_ties_the_higher_index(values, data) -> None:
    weights = {f"l{i}": torch.tensor(row) for i, row in enumerate(values)}
    size = sum(len(row) for row in values)
    masks = {
        name: torch.tensor([True, *data.draw(st.lists(st.booleans(), min_size=len(w) - 1, max_size=len(w) - 1))])
        for name, w in weights.items()
    }
    alive = sum(int(mask.sum()) for mask in masks.values())
    density = data.draw(st.floats(0.01, alive / size))
    pruned = regrow.prune_by_magnitude(weights, masks, density)
    count = max(len(values), math.floor(density * size + 1e-6))
    assert sum(int(mask.sum()) for mask in pruned.values()) == count
    best = {name: max(float(w[i].abs()) for i in range(len(w)) if masks[name][i]) for name, w in weights.items()}
    safe = {n: next(i for i in range(len(w)) if masks[n][i] and w[i].abs() == best[n]) for n, w in weights.items()}
    entries = [(n, i) for n, w in weights.items() for i in range(len(w)) if masks[n][i]]
    position = {entry: number for number, entry in enumerate(entries)}
    ranked = sorted(entries, key=lambda e: (safe[e[0]] != e[1], -float(weights[e[0]][e[1]].abs()), position[e]))
    assert {(n, i) for n, mask in pruned.items() for i in mask.nonzero().flatten().tolist()} == set(ranked[:count])


def test_no_round_of_seven_tenths_takes_one_weight_too_many() -> None:
    masks = {"a": torch.ones(100, dtype=torch.bool)}
    assert int(regrow.prune_by_magnitude({"a": torch.arange(100.0)}, masks, 0.7**2)["a"].sum()) == 49


def test_pruning_refuses_what_it_cannot_do() -> None:
    masks = {"a": torch.tensor([True, False, True])}
    with pytest.raises(ValueError, match=r"density 1\.0 asks for 3 weights, but 2 are alive"):
        regrow.prune_by_magnitude({"a": torch.ones(3)}, masks, 1.0)
    with pytest.raises(ValueError, match=r"weights\['a'\] must be finite"):
        regrow.prune_by_magnitude({"a": torch.tensor([1.0, 0.0, torch.nan])}, masks, 0.5)
    with pytest.raises(ValueError, match=r"weights\['a'\]"):
        regrow.prune_by_magnitude({}, masks, 0.5)
    for density in (-0.5, 0.0, 1.5, math.nan, "0.5", True):
        with pytest.raises(ValueError, match=r"density is .*; expected the share of all .*, in \(0, 1\]"):
            regrow.prune_by_magnitude({"a": torch.ones(3)}, masks, density)
    with pytest.raises(ValueError, match=r"scope is 'Global'; expected 'layer' or 'global'"):
        regrow.prune_by_magnitude({"a": torch.ones(3)}, masks, 0.5, scope="Global")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="masks are empty"):
        regrow.prune_by_magnitude({}, {}, 0.5)
    both = masks | {"b": torch.zeros(3, dtype=torch.bool)}
    for scope in ("layer", "global"):
        with pytest.raises(ValueError, match=r"masks\['b'\] has no weight alive"):
            regrow.prune_by_magnitude({"a": torch.ones(3), "b": torch.ones(3)}, both, 0.2, scope=scope)


def test_the_controls() -> None:
    masks = {"a": torch.rand(20, 30) < 0.2, "b": torch.rand(20, 30) < 0.5}
    shuffled = regrow.shuffle_masks(masks, seed=3)
    assert {n: int(m.sum()) for n, m in shuffled.items()} == {n: int(m.sum()) for n, m in masks.items()}
    assert all(not torch.equal(shuffled[name], mask) for name, mask in masks.items())
    assert same(shuffled, regrow.shuffle_masks(masks, seed=3))
    assert not torch.equal(regrow.shuffle_masks({"a": masks["a"]}, seed=4)["a"], shuffled["a"])

    before = torch.get_rng_state()
    fresh = regrow.reinitialized(net, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert fresh.keys() == net().state_dict().keys()


def test_reinitialisation_follows_the_seed() -> None:
    def build() -> nn.Module:
        return nn.Linear(3, 4)

    assert same(regrow.reinitialized(build, 1), regrow.reinitialized(build, 1))
    assert not same(regrow.reinitialized(build, 1), regrow.reinitialized(build, 2))


def test_the_reports_lottery_is_a_pruning_runs_mask_on_the_same_initialisation() -> None:
    model = mlp()
    optimizer = sgd(model)
    recipe = regrow.gradual_pruning(sparsity=0.8, total_steps=STEPS, every=2, start=2)
    pruning = regrow.attach(model, optimizer, recipe)
    loop(model, optimizer, range(STEPS))
    ticket = mlp()
    sparsifier = regrow.attach(ticket, sgd(ticket), regrow.from_masks(pruning.masks))
    for name, weight in mlp().named_parameters():
        mask = pruning.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(ticket.get_parameter(name), weight * mask)
    assert sparsifier.sparsity == pruning.sparsity == pytest.approx(0.8, abs=1e-3)
