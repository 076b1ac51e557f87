"""An attached model while it trains: exact counts, zeros that stay zero, updates when they are due and only then."""

import copy
import dataclasses

import pytest
import torch
from nets import batch, convnet, mlp, sgd, train
from torch import Tensor, nn

import regrow
from regrow.parts.distributions import total_alive
from regrow.storage import optimizers

ARGUMENTS = {"sparsity": 0.8, "total_steps": 40, "every": 5}
RECIPES = {
    "static": regrow.static(sparsity=0.8),
    "set": regrow.set_(**ARGUMENTS),
    "rigl": regrow.rigl(**ARGUMENTS),
    "snfs": regrow.snfs(**ARGUMENTS),
    "rigl-sg": regrow.rigl_sg(**ARGUMENTS),
    "rigl-sm": regrow.rigl_sm(**ARGUMENTS),
    "pruning": regrow.gradual_pruning(start=5, **ARGUMENTS),
    "snip": regrow.snip(sparsity=0.8),
}
CONSTANT = ["static", "set", "rigl"]


def dead_values(sparsifier: regrow.Sparsifier) -> list[Tensor]:
    """Dead weights and dead optimizer state of every layer."""
    found = []
    for name, mask in sparsifier.masks.items():
        parameter = sparsifier.model.get_parameter(name)
        found.append(parameter.detach()[~mask])
        found += [value[~mask] for value, _ in optimizers.elementwise_state(sparsifier.optimizer, parameter)]
    return found


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("build", "shape"), [(mlp, (32, 12)), (convnet, (8, 3, 8, 8))])
def test_counts_are_exact_and_masks_change_only_at_updates(name, build, shape) -> None:
    model = build()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, RECIPES[name], strict=True)
    layers = regrow.find_layers(model)
    size = sum(layer.size for layer in layers.values())
    before, updates = {k: v.clone() for k, v in sparsifier.masks.items()}, 0

    def check(step: int) -> None:
        nonlocal before, updates
        changed = any(not torch.equal(mask, before[layer]) for layer, mask in sparsifier.masks.items())
        assert not changed or sparsifier.num_updates == updates + 1, f"masks changed without an update at call {step}"
        for layer, mask in sparsifier.masks.items():
            assert int(mask.sum()) == sparsifier.num_alive[layer] >= 1
        if name in CONSTANT:
            assert sparsifier.num_alive == regrow.erk(layers, 0.8)
        elif name in ("snfs", "rigl-sg", "rigl-sm"):
            assert sum(sparsifier.num_alive.values()) == sum(regrow.erk(layers, 0.8).values())
        elif name == "pruning":
            due = RECIPES[name].sparsity_at((sparsifier.weight_steps) // 5 * 5) if sparsifier.weight_steps >= 5 else 0.0
            assert sum(sparsifier.num_alive.values()) == round((1 - due) * size)
        elif name == "snip":
            assert sum(sparsifier.num_alive.values()) == round(0.2 * size)
        for values in dead_values(sparsifier):
            assert not values.any()
        before, updates = {k: v.clone() for k, v in sparsifier.masks.items()}, sparsifier.num_updates

    train(model, optimizer, range(40), check, shape)
    expected = {"static": 0, "snip": 1}.get(name, 6)
    assert sparsifier.num_updates == expected
    taken = 40 if RECIPES[name].step_on_update else 40 - expected
    assert sparsifier.weight_steps == taken


def test_rigl_updates_after_every_weight_steps_in_place_of_a_step() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(sparsity=0.5, total_steps=100, every=3))
    weights, masks, updated_at = {}, {}, []

    def check(call: int) -> None:
        nonlocal weights, masks
        now = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        if sparsifier.num_updates > len(updated_at):
            updated_at.append(call)
            for name, value in now.items():
                kept = (
                    sparsifier.masks[name] & masks[name] if name in masks else torch.ones_like(value, dtype=torch.bool)
                )
                assert torch.equal(value[kept], weights[name][kept]), (
                    "an update must not move a weight, biases included"
                )
                assert not value[~kept].any()
        weights, masks = now, {k: v.clone() for k, v in sparsifier.masks.items()}

    train(model, optimizer, range(13), check)
    assert updated_at == [3, 7, 11]
    assert sparsifier.weight_steps == 10


def test_replace_gives_the_original_rule_where_no_weight_step_is_lost() -> None:
    model = mlp()
    algorithm = dataclasses.replace(regrow.rigl(sparsity=0.5, total_steps=100, every=3), step_on_update=True)
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, algorithm, strict=True)
    train(model, optimizer, range(12))
    assert (sparsifier.weight_steps, sparsifier.num_updates) == (12, 4)


def test_a_layer_without_dead_weights_is_left_alone() -> None:
    model = mlp()
    optimizer = sgd(model)
    regrow.attach(model, optimizer, regrow.static(sparsity=0.5, distribution={"0.weight": 0.0, "2.weight": 0.8}))
    for step in range(2):
        nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        versions = [model[layer].weight.grad._version for layer in (0, 2)]
        assert versions[0] < versions[1], "times 1 would be a pass over the weight for nothing"
        before = model[0].weight._version
        optimizer.step()
        assert model[0].weight._version - before < model[2].weight._version - before
        optimizer.zero_grad()


def test_growth_follows_the_dense_gradient_of_the_whole_optimizer_step() -> None:
    """Accumulated over micro-batches, taken before masking, and not the clipped or masked one."""
    model = mlp()
    optimizer = sgd(model, lr=0.0)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(sparsity=0.9, total_steps=100, every=1))
    train(model, optimizer, range(1))
    before = {k: v.clone() for k, v in sparsifier.masks.items()}
    dense = copy.deepcopy(model)
    for step in (1, 2):
        inputs, targets = batch(step)
        nn.functional.cross_entropy(dense(inputs), targets).backward()
        nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    for name, mask in sparsifier.masks.items():
        gradient = dense.get_parameter(name).grad.abs()
        grown, passed_over = mask & ~before[name], ~mask & ~before[name]
        if grown.any():
            assert gradient[grown].min() >= gradient[passed_over].max()
    assert any((sparsifier.masks[name] & ~before[name]).any() for name in before)


def test_dropped_and_regrown_weights_keep_value_and_state_and_new_ones_start_at_zero() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    algorithm = regrow.rigl(sparsity=0.5, total_steps=1000, every=4, drop_fraction=0.9)
    sparsifier = regrow.attach(model, optimizer, algorithm)
    train(model, optimizer, range(4))
    weights = {name: model.get_parameter(name).detach().clone() for name in sparsifier.masks}
    moments = {name: optimizer.state[model.get_parameter(name)]["exp_avg_sq"].clone() for name in sparsifier.masks}
    masks = {k: v.clone() for k, v in sparsifier.masks.items()}
    train(model, optimizer, range(4, 5))
    assert sparsifier.num_updates == 1
    for name in ("0.weight", "2.weight"):
        mask, parameter = sparsifier.masks[name], model.get_parameter(name)
        both, new = mask & masks[name], mask & ~masks[name]
        smallest = weights[name].abs()[both].min() < weights[name].abs()[masks[name] & ~mask].max()
        assert smallest, "the test needs a weight that was dropped and grown back"
        assert torch.equal(parameter[both], weights[name][both])
        assert torch.equal(optimizer.state[parameter]["exp_avg_sq"][both], moments[name][both])
        assert new.any()
        assert not parameter[new].any()
        assert not optimizer.state[parameter]["exp_avg_sq"][new].any()


@pytest.mark.parametrize("name", ["set", "rigl", "rigl-sg", "snfs"])
def test_alpha_zero_changes_nothing(name) -> None:
    recipe = {"set": regrow.set_, "rigl": regrow.rigl, "rigl-sg": regrow.rigl_sg, "snfs": regrow.snfs}[name]
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, recipe(drop_fraction=0.0, **ARGUMENTS))
    before = {k: v.clone() for k, v in sparsifier.masks.items()}
    train(model, optimizer, range(20))
    assert sparsifier.num_updates > 0
    assert all(torch.equal(mask, before[layer]) for layer, mask in sparsifier.masks.items())


def test_no_update_after_the_last_one() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.set_(sparsity=0.5, total_steps=1000, every=2, stop=6))
    train(model, optimizer, range(6))
    before = {k: v.clone() for k, v in sparsifier.masks.items()}
    assert sparsifier.num_updates == 3
    train(model, optimizer, range(6, 20))
    assert sparsifier.num_updates == 3
    assert all(torch.equal(mask, before[layer]) for layer, mask in sparsifier.masks.items())


def test_dense_layers_under_erk_are_bit_identical_across_an_update() -> None:
    model = mlp()
    optimizer = sgd(model)
    algorithm = regrow.rigl(sparsity=0.3, total_steps=100, every=1)
    sparsifier = regrow.attach(model, optimizer, algorithm)
    assert sparsifier.densities["4.weight"] == 1.0
    train(model, optimizer, range(1))
    before = model.get_parameter("4.weight").detach().clone()
    train(model, optimizer, range(1, 2))
    assert sparsifier.num_updates == 1
    assert torch.equal(model.get_parameter("4.weight"), before)


def test_set_takes_the_weight_step_first() -> None:
    """What is dropped are the smallest weights *after* the step that a static twin takes too."""
    model, twin = mlp(), mlp()
    optimizer, plain = sgd(model), sgd(twin)
    sparsifier = regrow.attach(model, optimizer, regrow.set_(sparsity=0.5, total_steps=100, every=1))
    static = regrow.attach(twin, plain, regrow.static(sparsity=0.5))
    train(model, optimizer, range(1))
    train(twin, plain, range(1))
    for name in ("0.weight", "2.weight"):
        mask, before, stepped = sparsifier.masks[name], static.masks[name], twin.get_parameter(name).detach()
        assert torch.equal(model.get_parameter(name)[mask & before], stepped[mask & before])
        replaced = int(regrow.parts.schedules.Cosine(0.3, end=75)(1) * int(before.sum()))
        smallest = stepped.abs()[before].sort().values[:replaced].max()
        assert bool((before & ~mask).any())
        assert stepped.abs()[before & ~mask].max() <= smallest
    assert torch.equal(model.get_parameter("0.bias"), twin.get_parameter("0.bias"))


def test_snfs_grows_by_the_momentum_of_dense_gradients() -> None:
    model = mlp()
    optimizer = sgd(model, lr=0.0, momentum=0.5)
    sparsifier = regrow.attach(model, optimizer, regrow.snfs(sparsity=0.9, total_steps=100, every=3))
    momentum = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in sparsifier.masks.items()}
    before = {k: v.clone() for k, v in sparsifier.masks.items()}
    dense = copy.deepcopy(model)
    for step in range(3):
        inputs, targets = batch(step)
        dense.zero_grad()
        nn.functional.cross_entropy(dense(inputs), targets).backward()
        for name in momentum:
            momentum[name] = 0.5 * momentum[name] + dense.get_parameter(name).grad
    train(model, optimizer, range(3))
    for name, mask in sparsifier.masks.items():
        grown, passed_over = mask & ~before[name], ~mask & ~before[name]
        if grown.any() and passed_over.any():
            assert momentum[name].abs()[grown].min() >= momentum[name].abs()[passed_over].max() - 1e-7


def test_the_dense_momentum_has_the_gradient_of_every_step_also_where_another_group_updates_in_its_place() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    often = {"sparsity": 0.8, "total_steps": 80, "every": 1}
    groups = {"0": regrow.snfs(**often | {"every": 50}), "*": regrow.rigl(**often)}
    sparsifier = regrow.attach(model, optimizer, groups)
    expected = torch.zeros(24, 12)
    for step in range(4):
        inputs, targets = batch(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        expected = 0.9 * expected + model[0].weight.grad
        optimizer.step()
        optimizer.zero_grad()
    assert sparsifier.num_updates == 2
    assert torch.equal(sparsifier.state_dict()["layers"]["0.weight"]["momentum"], expected)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_dense_momentum_stays_finite_where_the_gradient_of_a_dead_weight_was_not(value: float) -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.snfs(**ARGUMENTS))
    index = tuple((~sparsifier.masks["2.weight"]).nonzero()[0].tolist())
    for step in range(3):
        inputs, targets = batch(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        if step == 0:
            before = model[2].weight.grad.clone()
        if step == 1:
            model[2].weight.grad[index] = value
        optimizer.step()
        optimizer.zero_grad()
        if step == 1:
            momentum = sparsifier.state_dict()["layers"]["2.weight"]["momentum"]
            assert momentum.isfinite().all()
            assert momentum[index] == 0.9 * before[index]


def test_snip_keeps_the_most_sensitive_weights_of_the_first_step() -> None:
    model = mlp()
    dense = copy.deepcopy(model)
    inputs, targets = batch(0)
    nn.functional.cross_entropy(dense(inputs), targets).backward()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.snip(sparsity=0.8))
    assert sparsifier.sparsity == 0.0
    train(model, optimizer, range(1))
    names = list(sparsifier.masks)
    scores = torch.cat([(dense.get_parameter(n).grad * dense.get_parameter(n)).abs().flatten() for n in names]).detach()
    alive = torch.cat([sparsifier.masks[n].flatten() for n in names])
    assert int(alive.sum()) == round(0.2 * alive.numel())
    assert scores[alive].min() >= scores[~alive].max()
    for name in names:
        value, old = model.get_parameter(name), dense.get_parameter(name)
        assert torch.equal(value[sparsifier.masks[name]], old[sparsifier.masks[name]]), "the weight step was not taken"


def test_the_worked_example_of_snip() -> None:
    """W = [[.5, -.3], [.1, .8]], x = (1, 1), y* = (0, 1), squared error: scores .20 .12 .02 .16."""
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[0.5, -0.3], [0.1, 0.8]])
    loss = ((model(torch.ones(2)) - torch.tensor([0.0, 1.0])) ** 2).sum()
    assert loss.item() == pytest.approx(0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.snip(sparsity=0.5))
    loss.backward()
    assert torch.allclose(model.weight.grad, torch.tensor([[0.4, 0.4], [-0.2, -0.2]]))
    scores = (model.weight.grad * model.weight).abs()
    assert torch.allclose(scores, torch.tensor([[0.20, 0.12], [0.02, 0.16]]))
    optimizer.step()
    assert sparsifier.masks["weight"].tolist() == [[True, False], [False, True]]


def test_groups_have_their_own_algorithm_and_the_first_pattern_wins() -> None:
    model = mlp()
    optimizer = sgd(model)
    algorithm = {"0": regrow.rigl(sparsity=0.9, total_steps=40, every=5), "[02]": regrow.static(sparsity=0.5)}
    sparsifier = regrow.attach(model, optimizer, algorithm, strict=True)
    first = {k: v.clone() for k, v in sparsifier.masks.items()}
    assert list(first) == ["0.weight", "2.weight"]
    train(model, optimizer, range(12))
    assert not torch.equal(first["0.weight"], sparsifier.masks["0.weight"])
    assert torch.equal(first["2.weight"], sparsifier.masks["2.weight"])
    assert sparsifier.densities["2.weight"] == 0.5


def test_the_seed_decides_the_masks_and_nothing_else_does() -> None:
    def masks(seed: int, draw: bool) -> dict[str, Tensor]:
        model = mlp()
        optimizer = sgd(model)
        sparsifier = regrow.attach(model, optimizer, regrow.set_(**ARGUMENTS), seed=seed)
        if draw:
            torch.rand(100)
        train(model, optimizer, range(12))
        return sparsifier.masks

    one, same, other = masks(1, False), masks(1, True), masks(2, False)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_mean_densities_average_over_weight_steps() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.gradual_pruning(sparsity=0.8, total_steps=40, every=5, start=5))
    assert set(sparsifier.mean_densities.values()) == {1.0}
    sums = dict.fromkeys(sparsifier.masks, 0.0)
    for step in range(30):
        now = sparsifier.densities
        sums = {name: sums[name] + now[name] for name in sums}
        train(model, optimizer, range(step, step + 1))
    for name, mean in sparsifier.mean_densities.items():
        assert mean == pytest.approx(sums[name] / 30, rel=1e-12)


def test_clipping_does_not_see_the_gradients_of_dead_weights() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(sparsity=0.9, total_steps=100, every=50))
    inputs, targets = batch(0)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    for name, mask in sparsifier.masks.items():
        assert not model.get_parameter(name).grad[~mask].any()


def test_a_non_finite_gradient_makes_the_update_wait() -> None:
    model = mlp()
    optimizer = sgd(model, lr=1e-6, momentum=0.0, weight_decay=0.0)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(sparsity=0.5, total_steps=100, every=2))
    train(model, optimizer, range(2))
    before = {k: v.clone() for k, v in sparsifier.masks.items()}
    weights = copy.deepcopy(model.state_dict())
    inputs, targets = batch(2)
    (nn.functional.cross_entropy(model(inputs), targets) * torch.inf).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert sparsifier.num_updates == 0
    assert all(torch.equal(mask, before[name]) for name, mask in sparsifier.masks.items())
    model.load_state_dict(weights)
    train(model, optimizer, range(3, 4))
    assert sparsifier.num_updates == 1


def test_a_layer_frozen_at_an_update_keeps_its_mask_and_moves_again_when_thawed() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(sparsity=0.5, total_steps=100, every=2))
    model[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in sparsifier.masks.items()}
    train(model, optimizer, range(3))
    assert sparsifier.num_updates == 1
    assert torch.equal(sparsifier.masks["0.weight"], before["0.weight"])
    assert not torch.equal(sparsifier.masks["2.weight"], before["2.weight"])
    model[0].weight.requires_grad_(True)
    train(model, optimizer, range(3, 6))
    assert not torch.equal(sparsifier.masks["0.weight"], before["0.weight"])


def test_apply_masks_keeps_a_copy_sparse() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(**ARGUMENTS))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    train(model, optimizer, range(20), lambda step: average.update_parameters(model))
    mask = sparsifier.masks["0.weight"]
    assert average.module[0].weight[~mask].any(), "without masks an average fills up"
    sparsifier.apply_masks(average)
    assert not average.module[0].weight[~mask].any()
    with pytest.raises(ValueError, match=r"'0\.weight' of shape \(24, 12\) was expected"):
        sparsifier.apply_masks(mlp(width=8))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["rigl", "snfs", "set"])
def test_a_compiled_step_is_that_of_an_eager_one(name: str) -> None:
    found = []
    for compiled in (False, True):
        model = mlp()
        optimizer = sgd(model)
        sparsifier = regrow.attach(model, optimizer, RECIPES[name], strict=True)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for number in range(13):
            inputs, targets = batch(number)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            step()
            optimizer.zero_grad()
        assert sparsifier.num_updates == 2
        found.append([*sparsifier.masks.values(), *model.state_dict().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_detach_leaves_a_plain_module() -> None:
    model = mlp()
    keys = list(model.state_dict())
    optimizer = sgd(model, momentum=0.0)
    sparsifier = regrow.attach(model, optimizer, regrow.static(sparsity=0.9))
    sparsifier.detach()
    assert list(model.state_dict()) == keys
    assert type(model[0].weight) is nn.Parameter
    train(model, optimizer, range(1))
    assert model[0].weight[~sparsifier.masks["0.weight"]].any()
    regrow.attach(model, optimizer, regrow.from_masks(sparsifier.masks))


def test_a_deepcopy_is_a_plain_model_of_its_own() -> None:
    model = mlp()
    optimizer = sgd(model)
    regrow.attach(model, optimizer, regrow.static(sparsity=0.9))
    twin = copy.deepcopy(model)
    inputs, targets = batch(0)
    nn.functional.cross_entropy(twin(inputs), targets).backward()
    assert twin[0].weight.grad[twin[0].weight == 0].any()


def test_from_masks_trains_exactly_those() -> None:
    model = mlp()
    masks = {name: torch.rand(layer.shape) < 0.3 for name, layer in regrow.find_layers(model).items()}
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.from_masks(masks), strict=True)
    train(model, optimizer, range(3))
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())
    fresh = mlp()
    with pytest.raises(ValueError, match=r"no mask of shape \(16, 24\) is given for layer '2\.weight'"):
        regrow.attach(fresh, sgd(fresh), regrow.from_masks({"0.weight": masks["0.weight"]}))


def test_the_table_lines_up_and_shows_flops_once_they_are_known() -> None:
    model = mlp()
    sparsifier = regrow.attach(model, sgd(model), regrow.rigl(sparsity=0.8, total_steps=1000))
    lines = str(sparsifier).splitlines()
    assert lines[0].split() == ["layer", "shape", "density", "alive", "weights", "algorithm", "next", "update"]
    assert "step 100" in lines[2]
    assert len({len(line) for line in (lines[1], lines[-3])}) == 1
    total = total_alive(regrow.find_layers(model), 0.8)
    assert f"{sum(sparsifier.num_alive.values()):,}" in lines[-2]
    assert abs(sum(sparsifier.num_alive.values()) - total) <= 3
    assert "FLOPs" not in str(sparsifier)
    flops = sparsifier.flops(torch.zeros(1, 12))
    assert f"{flops.sparse:,}" in str(sparsifier)


def test_strict_names_the_first_weight_that_something_else_wrote() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.static(sparsity=0.9), strict=True)
    train(model, optimizer, range(2))
    index = tuple((~sparsifier.masks["2.weight"]).nonzero()[0].tolist())

    def vandal() -> None:
        with torch.no_grad():
            model[2].weight[index] = 3.0

    sparsifier._attached.zero_dead = vandal  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=rf"dead weight of '2\.weight' at \({index[0]}, {index[1]}\) is 3\.0"):
        train(model, optimizer, range(2, 3))


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_its_repr_is_a_line(storage: str) -> None:
    model = mlp()
    optimizer = sgd(model)
    recipes = {"0": RECIPES["rigl"], "2": RECIPES["set"], "4": RECIPES["rigl"]}
    sparsifier = regrow.attach(model, optimizer, recipes, storage=storage)
    train(model, optimizer, range(12))
    assert repr(sparsifier) == (
        f"<Sparsifier rigl, set: 3 layers, sparsity {sparsifier.sparsity:.4f}, {sparsifier.weight_steps} weight steps, "
        f"{sparsifier.num_updates} topology updates, {storage} storage>"
    )
    assert sparsifier.num_updates == 6
    assert f"{[sparsifier]}" == f"[{sparsifier!r}]"
    sparsifier.detach()
    assert repr(sparsifier).endswith(f"{storage} storage, detached>")
    assert f"{sparsifier}".count("\n") > 3


def test_its_repr_counts_what_is_left_dense() -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32))
    sparsifier = regrow.attach(model, sgd(model), regrow.static(sparsity=0.5), exclude="2")
    assert "1 layer, sparsity 0.5000 (0.2500 with what is left dense), 0 weight steps" in repr(sparsifier)
