"""Loading in whatever order, with and without the sparsifier's state: bit for bit, or refused with nothing lost."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import batch, mlp, sgd, train
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow
from regrow.compaction.capture.region import SWITCH
from regrow.engine import native
from regrow.storage.masked_layer import MaskedLayer

ARGUMENTS: Any = {"sparsity": 0.8, "total_steps": 60, "every": 5}
RECIPES = {
    "static": regrow.static(sparsity=0.8),
    "set": regrow.set_(**ARGUMENTS),
    "rigl": regrow.rigl(**ARGUMENTS),
    "rigl-sm": regrow.rigl_sm(**ARGUMENTS),
    "snfs": regrow.snfs(**ARGUMENTS),
    "pruning": regrow.gradual_pruning(start=5, **ARGUMENTS),
    "snip": regrow.snip(sparsity=0.8),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: sgd(model, nesterov=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.01, initial_accumulator_value=0.1),
    "rprop": lambda model: torch.optim.Rprop(model.parameters()),
}
STORAGES = ["dense", "compact"]
GROWN = 6  # calls of step after which the last one was RigL's update, so that alive weights are exactly 0
LIES_OUTSIDE = r"of '\d\.weight' lie outside its mask.*load_state_dict.*take_masks_from_weights.*apply_masks"


@pytest.fixture(autouse=True)
def _torch_does_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "torch")


class Run:
    """A training, and its parts by letter: the model, the optimizer, the attaching, the sparsifier."""

    def __init__(self, storage: str, recipe: str = "rigl", optimizer: str = "sgd", seed: int = 0) -> None:
        self.model, self.storage, self.recipe, self.seed = mlp(seed), storage, recipe, seed
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.sparsifier: regrow.Sparsifier | None = None

    def attach(self, **options: Any) -> "Run":
        self.sparsifier = regrow.attach(
            self.model,
            self.optimizer,
            RECIPES[self.recipe],
            storage=self.storage,  # type: ignore[arg-type]
            seed=self.seed,
            **options,
        )
        return self

    def train(self, *calls: int) -> "Run":
        train(self.model, self.optimizer, range(*calls))
        return self

    def saved(self) -> dict[str, Any]:
        assert self.sparsifier is not None
        parts = {"m": self.model, "o": self.optimizer, "s": self.sparsifier}
        return copy.deepcopy({letter: part.state_dict() for letter, part in parts.items()})

    def load(self, saved: dict[str, Any], order: str) -> "Run":
        for letter in order:
            if letter == "a":
                self.attach()
                continue
            part = {"m": self.model, "o": self.optimizer, "s": self.sparsifier}[letter]
            assert part is not None
            part.load_state_dict(copy.deepcopy(saved[letter]))
        return self


def equal(left: Any, right: Any) -> bool:
    """Of states: but for the decisions that compact storage keeps."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        left, right = ({key: value for key, value in each.items() if key != "storage"} for each in (left, right))
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def lost(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    return sum(int(((before[name] != 0) & (after[name] == 0)).sum()) for name in before)


ORDERS = ["".join(order) for order in itertools.permutations("maos") if order.index("a") < order.index("s")]
PAIRS = [("dense", "dense"), ("compact", "compact"), ("dense", "compact"), ("compact", "dense")]


def cases() -> Iterator[tuple[str, str, str, str, int]]:
    """Every order of one hard pair; every recipe and optimizer in the orders of the trainers."""
    yield from (("rigl-sm", "sgd", *pair, order, 16) for pair in PAIRS for order in ORDERS)  # type: ignore[misc]
    for recipe, optimizer in (
        *((recipe, "sgd") for recipe in ("static", "set", "rigl", "pruning", "snip", "snfs")),
        *(("rigl", optimizer) for optimizer in ("adam", "adagrad", "rprop")),
        ("pruning", "adam"),
    ):
        for pair in PAIRS if recipe != "snfs" else PAIRS[:1]:
            for order in ("maos", "asmo", "oams"):
                yield recipe, optimizer, *pair, order, GROWN  # type: ignore[misc]


@pytest.mark.parametrize(("recipe", "optimizer", "before", "after", "order", "stop"), list(cases()))
def test_a_run_goes_on_bit_for_bit_whatever_is_loaded_first_and_whenever_it_is_attached(
    recipe: str, optimizer: str, before: str, after: str, order: str, stop: int
) -> None:
    first = Run(before, recipe, optimizer).attach().train(stop)
    saved = first.saved()
    first.train(stop, 30)
    again = Run(after, recipe, optimizer, seed=7).load(saved, order)
    assert equal(again.saved()["m"], saved["m"])
    again.train(stop, 30)
    assert equal(again.saved(), first.saved())


@pytest.mark.parametrize("order", ["maos", "asom", "moas", "oams"])
def test_the_engine_goes_on_bit_for_bit_too(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip(f"needs the engine: {native.unavailable_reason()}")
    monkeypatch.setenv(SWITCH, "engine")
    first = Run("compact").attach().train(16)
    saved = first.saved()
    first.train(16, 30)
    assert equal(Run("compact", seed=7).load(saved, order).train(16, 30).saved(), first.saved())


def older(storage: str, recipe: str = "rigl", optimizer: str = "sgd") -> tuple[Run, dict[str, Any]]:
    """A run, and what was saved of it before its last update."""
    run = Run(storage, recipe, optimizer).attach().train(8)
    saved = run.saved()
    run.train(8, 16)
    assert lost(saved["m"], run.model.state_dict()), "the test needs weights outside the present masks"
    return run, saved


def dense_outputs(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
    model = mlp()
    model.load_state_dict(state)
    with torch.no_grad():
        outputs: Tensor = model(inputs)
    return outputs


def refused(run: Run, state: dict[str, Tensor], match: str = LIES_OUTSIDE) -> None:
    """The next step is refused, and neither gradients nor anything else has changed then."""
    inputs, targets = batch(99)
    nn.functional.cross_entropy(run.model(inputs), targets).backward()
    gradients = [parameter.grad.clone() for parameter in run.model.parameters() if parameter.grad is not None]
    before = run.saved()
    with pytest.raises(ValueError, match=match):
        run.optimizer.step()
    assert equal(run.saved(), before)
    assert equal([p.grad for p in run.model.parameters() if p.grad is not None], gradients)
    assert equal(dict(run.model.state_dict()), dict(state))
    run.optimizer.zero_grad()


def load(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    model.load_state_dict(state)


def load_submodules(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    for name, module in model.named_children():
        module.load_state_dict(
            {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        )


def load_one_by_one(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    for key, value in state.items():
        model.load_state_dict({key: value}, strict=False)


def load_a_copy(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    model.load_state_dict(twin.state_dict())


def load_safetensors(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import load_model, save_file

    save_file(state, folder / "model.safetensors")
    load_model(model, folder / "model.safetensors")


def copy_into(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])


def copy_into_data(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    for name, parameter in model.named_parameters():
        parameter.data.copy_(state[name])


def replace_data(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = state[name].clone()


def from_a_vector(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    vector = nn.utils.parameters_to_vector([state[name] for name, _ in model.named_parameters()])
    nn.utils.vector_to_parameters(vector, model.parameters())


LOADS = [load, load_submodules, load_one_by_one, load_a_copy, load_safetensors]
WRITES = [copy_into, copy_into_data, replace_data, from_a_vector]
EVERYWHERE = [(storage, way) for storage in STORAGES for way in LOADS] + [("dense", way) for way in WRITES]


@pytest.mark.parametrize("recipe", ["rigl", "pruning", "set"])
@pytest.mark.parametrize(("storage", "way"), EVERYWHERE)
def test_older_weights_are_what_the_model_computes_and_saves_and_no_step_erases_them(
    storage: str, way: Callable[[nn.Module, dict[str, Tensor], Path], None], recipe: str, tmp_path: Path
) -> None:
    run, saved = older(storage, recipe)
    way(run.model, saved["m"], tmp_path)
    inputs = batch(77)[0]
    torch.testing.assert_close(run.model(inputs).detach(), dense_outputs(saved["m"], inputs))
    refused(run, saved["m"])
    refused(run, saved["m"])
    assert run.sparsifier is not None
    run.sparsifier.load_state_dict(saved["s"])
    run.optimizer.load_state_dict(copy.deepcopy(saved["o"]))
    assert equal(run.train(8, 16).saved(), Run(storage, recipe).attach().train(16).saved())


@pytest.mark.parametrize("storage", STORAGES)
def test_weights_assigned_to_the_model_are_whole_and_the_next_step_is_refused(storage: str) -> None:
    run, saved = older(storage)
    run.model.load_state_dict(saved["m"], assign=True)
    assert equal(dict(run.model.state_dict()), dict(saved["m"]))
    with pytest.raises(RuntimeError, match=r"not the weight any more.*assign=True"):
        run.train(8, 9)
    assert equal(dict(run.model.state_dict()), dict(saved["m"]))
    assert run.sparsifier is not None
    masks = run.sparsifier.masks
    run.sparsifier.apply_masks(run.model)
    assert all(torch.equal(run.model.state_dict()[name], saved["m"][name] * mask) for name, mask in masks.items())
    run.model.load_state_dict(saved["m"])
    run.sparsifier.detach()
    assert equal(dict(run.model.state_dict()), dict(saved["m"]))


def test_dense_weights_that_are_put_into_compact_parameters_are_refused_with_the_way_to_load_them() -> None:
    run, saved = older("compact")
    with pytest.raises(RuntimeError, match="size"):
        copy_into_data(run.model, saved["m"], Path())
    replace_data(run.model, saved["m"], Path())
    for use in (lambda: run.model(batch(7)[0]), run.model.state_dict):
        with pytest.raises(ValueError, match=r"dense weights are loaded by load_state_dict"):
            use()


@pytest.mark.parametrize("storage", STORAGES)
def test_the_best_weights_loaded_after_the_last_step_are_what_is_saved_and_detached(storage: str) -> None:
    run, saved = older(storage)
    run.model.load_state_dict(saved["m"])
    assert equal(copy.deepcopy(run.model).state_dict(), saved["m"])
    assert run.sparsifier is not None
    run.sparsifier.detach()
    assert equal(dict(run.model.state_dict()), dict(saved["m"]))
    assert type(run.model[0]) is nn.Linear


@pytest.mark.parametrize("storage", STORAGES)
def test_a_checkpoint_of_dense_training_is_whole_until_the_masks_are_put_on(storage: str) -> None:
    run, dense = Run(storage).attach().train(8), mlp(seed=5).state_dict()
    run.model.load_state_dict(dense)
    assert equal(dict(run.model.state_dict()), dict(dense))
    refused(run, dense)
    assert run.sparsifier is not None
    with torch.no_grad():
        run.model[4].weight.view(-1)[0] = 0
    with pytest.raises(ValueError, match=r"288 weights of '0\.weight' are not 0, and rigl keeps"):
        run.sparsifier.take_masks_from_weights()
    run.sparsifier.apply_masks(run.model)
    run.train(8, 16)
    for name, mask in run.sparsifier.masks.items():
        assert not run.model.state_dict()[name][~mask].any()


@pytest.mark.parametrize("storage", STORAGES)
def test_an_average_of_nets_is_kept_until_somebody_says_what_to_do(storage: str) -> None:
    """Federated learning: each round the clients' mean is loaded into all of them."""
    clients = [Run(storage, seed=seed).attach().train(8) for seed in range(3)]
    states = [client.model.state_dict() for client in clients]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    for client in clients:
        client.model.load_state_dict(mean)
        refused(client, mean)
        assert client.sparsifier is not None
        client.sparsifier.apply_masks(client.model)
        for name, mask in client.sparsifier.masks.items():
            assert torch.equal(client.model.state_dict()[name], mean[name] * mask)
        client.train(8, 12)


@pytest.mark.parametrize("swap", ["load", "copy", "data"])
@pytest.mark.parametrize("storage", STORAGES)
def test_weights_that_are_swapped_and_brought_back_between_steps_change_nothing(storage: str, swap: str) -> None:
    """What an exponential moving average does for an evaluation."""
    run, plain = Run(storage).attach(), Run(storage).attach().train(20)
    for step in range(20):
        run.train(step, step + 1)
        if swap == "load":
            kept = copy.deepcopy(run.model.state_dict())
            run.model.load_state_dict(mlp(seed=3).state_dict())
            run.model.load_state_dict(kept)
            continue
        stored = [parameter.detach().clone() for parameter in run.model.parameters()]
        for values in ([value + 1 for value in stored], stored):
            for parameter, value in zip(run.model.parameters(), values, strict=True):
                (parameter.detach() if swap == "copy" else parameter.data).copy_(value)
    assert equal(run.saved(), plain.saved())


@pytest.mark.parametrize("storage", STORAGES)
def test_weights_swapped_between_micro_batches_change_nothing_at_an_update_either(storage: str) -> None:
    found = []
    for swaps in (False, True):
        run = Run(storage).attach()
        for step in range(20):
            for part in range(2):
                inputs, targets = batch(2 * step + part)
                nn.functional.cross_entropy(run.model(inputs), targets).backward()
                if swaps:
                    kept = copy.deepcopy(run.model.state_dict())
                    run.model.load_state_dict(mlp(seed=3).state_dict())
                    run.model(inputs)
                    run.model.load_state_dict(kept)
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=step % 2 == 0)
        found.append(run.saved())
    assert equal(*found)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_load_between_the_backward_pass_and_the_step_is_noticed_too(storage: str) -> None:
    run, saved = older(storage)
    inputs, targets = batch(16)
    nn.functional.cross_entropy(run.model(inputs), targets).backward()
    run.model.load_state_dict(saved["m"])
    with pytest.raises(ValueError, match=LIES_OUTSIDE):
        run.optimizer.step()
    assert equal(dict(run.model.state_dict()), dict(saved["m"]))


@pytest.mark.parametrize("storage", STORAGES)
def test_it_is_noticed_inside_a_closure_and_of_frozen_weights(storage: str) -> None:
    run, saved = older(storage)
    run.model[0].weight.requires_grad_(False)
    run.model[0].load_state_dict({"weight": saved["m"]["0.weight"], "bias": saved["m"]["0.bias"]})

    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(run.model(batch(16)[0]), batch(16)[1])
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"of '0\.weight' lie outside its mask, and"):
        run.optimizer.step(closure)
    assert torch.equal(run.model.state_dict()["0.weight"], saved["m"]["0.weight"])


@pytest.mark.parametrize("storage", STORAGES)
def test_optimizer_state_that_lies_outside_the_masks_is_refused_and_whole_until_then(storage: str) -> None:
    run, saved = older(storage)
    run.optimizer.load_state_dict(copy.deepcopy(saved["o"]))
    assert equal(run.optimizer.state_dict(), saved["o"])
    with pytest.raises(ValueError, match=r"entries of the loaded optimizer state of '\d\.weight' lie outside its mask"):
        run.train(16, 17)
    assert equal(run.optimizer.state_dict(), saved["o"])
    assert run.sparsifier is not None
    run.sparsifier.apply_masks(run.model)
    run.train(17, 24)


@pytest.mark.parametrize("storage", STORAGES)
def test_masks_alone_are_refused_as_well_and_a_half_of_a_checkpoint_names_what_is_missing(storage: str) -> None:
    run, saved = older(storage)
    assert run.sparsifier is not None
    before = copy.deepcopy(run.model.state_dict())
    run.sparsifier.load_state_dict(saved["s"])
    assert equal(dict(run.model.state_dict()), dict(before))
    refused(run, before)
    run.model.load_state_dict({name: value for name, value in saved["m"].items() if "2." not in name}, strict=False)
    with pytest.raises(ValueError, match=r"weights that are not 0 of '2\.weight' lie outside"):
        run.train(8, 9)
    run.model.load_state_dict(saved["m"])
    run.train(8, 9)


def test_nobody_looks_at_the_weights_where_nothing_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(MaskedLayer, "strays", lambda layer: looked.append(layer.layer.name))
    run = Run("dense").attach().train(20)
    assert looked == []
    with torch.no_grad():
        run.model[2].weight.clamp_(-0.1, 0.1)
    run.train(20, 24)
    assert looked == ["2.weight"]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_free_compact_net_takes_whatever_is_loaded(storage: str) -> None:
    model, states = mlp(), [Run("dense", seed=seed).attach().train(8).saved()["m"] for seed in range(3)]
    model.load_state_dict(states[0])
    if storage == "compact":
        regrow.compact(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = batch(7)[0]
    for state in [*states, mlp(seed=9).state_dict(), *states]:
        model.load_state_dict(state)
        assert equal(dict(model.state_dict()), dict(state))
        torch.testing.assert_close(model(inputs).detach(), dense_outputs(state, inputs))
    train(model, optimizer, range(2))
    model.load_state_dict(states[0], assign=True)
    assert equal(dict(model.state_dict()), dict(states[0]))


# Masks from the weights


@pytest.mark.parametrize("attached_first", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("storage", STORAGES)
def test_without_the_sparsifiers_state_the_weights_tell_their_masks(
    storage: str, recipe: str, attached_first: bool
) -> None:
    if (storage, recipe) == ("compact", "snfs"):
        pytest.skip("SNFS has no compact form")
    stop = 16 if recipe == "pruning" else GROWN
    first = Run("dense", recipe).attach(strict=True).train(stop)
    saved, alive = first.saved(), first.sparsifier.masks  # type: ignore[union-attr]
    run = Run(storage, recipe, seed=7).load(saved, "am" if attached_first else "ma")
    assert run.sparsifier is not None
    run.sparsifier.take_masks_from_weights()
    assert equal(dict(run.model.state_dict()), dict(saved["m"]))
    for name, mask in run.sparsifier.masks.items():
        assert bool(mask[saved["m"][name] != 0].all())
    if recipe in ("pruning", "snip"):
        assert all(torch.equal(mask, saved["m"][name] != 0) for name, mask in run.sparsifier.masks.items())
    elif recipe in ("static", "set", "rigl"):
        assert run.sparsifier.num_alive == {name: int(mask.sum()) for name, mask in alive.items()}
    else:
        assert sum(run.sparsifier.num_alive.values()) == sum(int(mask.sum()) for mask in alive.values())
    run.train(0, 12)
    assert run.sparsifier.weight_steps >= 10
    run.sparsifier.load_state_dict(saved["s"])
    run.load(saved, "mo")
    assert equal(run.train(stop, 24).saved(), first.train(stop, 24).saved())


@pytest.mark.parametrize("storage", STORAGES)
def test_older_weights_give_an_attached_model_their_masks(storage: str) -> None:
    run, saved = older(storage, optimizer="adam")
    run.load(saved, "mo")
    assert run.sparsifier is not None
    steps = run.sparsifier.weight_steps
    run.sparsifier.take_masks_from_weights()
    assert run.sparsifier.weight_steps == steps
    assert equal(dict(run.model.state_dict()), dict(saved["m"]))
    run.train(16, 17)
    assert not any(
        (run.model.state_dict()[name] == 0).logical_and(saved["m"][name] != 0).any() for name in run.sparsifier.masks
    )
    run.train(17, 40)


def test_blocks_and_channels_of_weights_stay_whole() -> None:
    record = dataclasses.replace(regrow.rigl(**ARGUMENTS), pattern=regrow.output_blocks(4))
    model = mlp()
    optimizer = sgd(model)
    first = regrow.attach(model, optimizer, record)
    train(model, optimizer, range(8))
    fresh = mlp(seed=4)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        fresh[0].weight[tuple(first.masks["0.weight"].nonzero()[0])] = 0
    sparsifier = regrow.attach(fresh, sgd(fresh), record)
    sparsifier.take_masks_from_weights()
    assert all(torch.equal(mask, first.masks[name]) for name, mask in sparsifier.masks.items())


def test_weights_of_another_sparsity_or_of_none_are_refused_and_nothing_changes() -> None:
    def attached(record: regrow.Algorithm, weights: dict[str, Tensor]) -> regrow.Sparsifier:
        model = mlp(seed=3)
        model.load_state_dict(weights)
        return regrow.attach(model, sgd(model), record)

    def sparse(record: regrow.Algorithm, calls: int = 0) -> dict[str, Tensor]:
        model = mlp()
        optimizer = sgd(model)
        regrow.attach(model, optimizer, record)
        train(model, optimizer, range(calls))
        return model.state_dict()

    def say(message: str, record: regrow.Algorithm, weights: dict[str, Tensor]) -> None:
        sparsifier = attached(record, weights)
        before = copy.deepcopy((sparsifier.model.state_dict(), sparsifier.masks))
        with pytest.raises(ValueError, match=message):
            sparsifier.take_masks_from_weights()
        assert equal((sparsifier.model.state_dict(), sparsifier.masks), before)

    pruned = sparse(regrow.gradual_pruning(sparsity=0.8, total_steps=20, every=2, start=2), 20)
    say("none of the 752 weights of .* is 0, so there are no masks", RECIPES["pruning"], mlp().state_dict())
    say("none of the 752 weights", RECIPES["snip"], mlp().state_dict())
    say(r"weights of '0\.weight' are not 0, and rigl keeps", RECIPES["rigl"], sparse(regrow.static(sparsity=0.5)))
    say(r"weights of '0\.weight' are not 0, and static keeps", RECIPES["static"], sparse(regrow.static(sparsity=0.85)))
    uniform = regrow.static(sparsity=0.8, distribution=regrow.uniform)
    say(r"attach with the sparsity and distribution", RECIPES["static"], sparse(uniform))
    say("weights of the net's snfs are not 0", RECIPES["snfs"], sparse(regrow.static(sparsity=0.5)))
    say("and pruning ends at 376 here", regrow.gradual_pruning(sparsity=0.5, total_steps=20, every=2, start=2), pruned)
    empty = {**pruned, "2.weight": torch.zeros_like(pruned["2.weight"])}
    say(r"every weight of '2\.weight' is 0", RECIPES["pruning"], empty)


def test_pruning_that_has_ended_does_not_take_denser_weights() -> None:
    record = regrow.gradual_pruning(sparsity=0.8, total_steps=20, every=2, start=2)
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, record)
    train(model, optimizer, range(8))
    early = copy.deepcopy(model.state_dict())
    train(model, optimizer, range(8, 20))
    model.load_state_dict(early)
    with pytest.raises(ValueError, match=r"and pruning ends at 150 here, without another update to come"):
        sparsifier.take_masks_from_weights()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_hardly_sparse_net_that_was_loaded_is_known_for_one_by_its_zeros(storage: str) -> None:
    record = regrow.static(sparsity=0.03)
    model, fresh = mlp(), mlp(seed=2)
    regrow.attach(model, sgd(model), record)
    fresh.load_state_dict(model.state_dict())
    sparsifier = regrow.attach(fresh, sgd(fresh), record, storage=storage, seed=5)  # type: ignore[arg-type]
    assert equal(dict(fresh.state_dict()), dict(model.state_dict()))
    sparsifier.take_masks_from_weights()
    train(fresh, sparsifier.optimizer, range(3))
