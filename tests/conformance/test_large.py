"""Long and large: no drift and no leak over many steps, budgets of models that no memory holds, indices past 2^31."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import batch, convnet, mlp, sgd
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import regrow
from regrow.engine import selection
from regrow.layers import Layer
from regrow.parts.distributions import PerLayer
from regrow.parts.patterns import output_blocks
from regrow.parts.redistribution import apportion
from regrow.parts.topk import select
from regrow.storage.stored_layer import AliveCount
from regrow.topology import next_mask

LONG = 2**31


def open_things() -> dict[str, int]:
    """Threads, file handles and tensors of this process."""
    gc.collect()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "tensors": tensors,
    }


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(steps: int) -> None:
    """Three recipes in one net, an update every ten steps."""
    model = mlp()
    optimizer = sgd(model, lr=0.01)
    dynamic = {"sparsity": 0.7, "total_steps": steps, "every": 10, "stop": steps}
    recipes = {"0": regrow.rigl_sm(**dynamic), "2": regrow.snfs(**dynamic), "4": regrow.set_(**dynamic)}
    sparsifier = regrow.attach(model, optimizer, recipes)
    alive, counted, memory = sparsifier.num_alive, {}, 0
    data = [batch(step) for step in range(32)]
    for step in range(steps):
        inputs, targets = data[step % len(data)]
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == steps // 4:
            counted, memory = open_things(), resident()
        if step % 97 == 0:
            sparsifier.state_dict()
            assert sparsifier.num_alive == {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == alive
            for name, mask in sparsifier.masks.items():
                assert not model.get_parameter(name)[~mask].any()
    assert sparsifier.num_updates == 2 * (sparsifier.weight_steps // 10) + steps - sparsifier.weight_steps
    assert steps - sparsifier.weight_steps == sparsifier.weight_steps // 10
    now = open_things()
    assert all(now[what] <= number for what, number in counted.items()), (counted, now)
    assert resident() - memory < 2**22, "a leak of 300 bytes a step would show"
    assert sparsifier.mean_densities == pytest.approx(sparsifier.densities, rel=1e-12)


def test_two_thousand_steps_leave_nothing_behind() -> None:
    soak(2000)


@pytest.mark.slow
def test_twenty_thousand_steps_leave_nothing_behind() -> None:
    soak(20_000)


# Planning from shapes


def wide(width: int, depth: int) -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(*[nn.Linear(width, width, bias=False, dtype=torch.bfloat16) for _ in range(depth)])


def test_a_plan_is_what_attaching_and_training_lead_to() -> None:
    with torch.device("meta"):
        shapes = mlp()
    for record in (
        regrow.static(sparsity=0.8),
        regrow.rigl(sparsity=0.8, total_steps=10, distribution=regrow.uniform),
        regrow.gradual_pruning(sparsity=0.8, total_steps=8, start=1, every=1, scope="layer"),
        {"0": regrow.static(sparsity=0.5), "*": regrow.static(sparsity=0.9)},
    ):
        planned = regrow.plan(shapes, record, torch.empty(1, 12))
        model = mlp()
        optimizer = sgd(model)
        sparsifier = regrow.attach(model, optimizer, record)
        for step in range(8):
            inputs, targets = batch(step)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert planned.num_alive == sparsifier.num_alive
        assert planned.densities == sparsifier.densities
        assert planned.sparsity == sparsifier.sparsity
        counted = regrow.count_flops(model, torch.zeros(1, 12), sparsifier.masks)
        assert (planned.flops.sparse, planned.flops.dense) == (counted.sparse, counted.dense)
        assert not planned.estimated
        assert str(planned).splitlines()[-1] == f"sparsity {planned.sparsity:.4f} after the last update"


@pytest.mark.parametrize(
    "record",
    [
        regrow.rigl_struct(sparsity=0.5, total_steps=10),
        replace(regrow.rigl(sparsity=0.8, total_steps=10), pattern=output_blocks(4)),
        replace(regrow.snip(sparsity=0.8, scope="layer", distribution=regrow.erk), pattern=output_blocks(2)),
    ],
    ids=["channels", "blocks", "pruned blocks"],
)
def test_a_plan_counts_in_the_units_of_the_pattern(record: regrow.Algorithm) -> None:
    inputs, model = torch.randn(2, 3, 9, 9), convnet()
    planned = regrow.plan(model, record, inputs, exclude=() if record.name == "rigl-struct" else "7")
    assert not planned.estimated
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, record, include=list(planned.layers))
    model(inputs).square().sum().backward()
    optimizer.step()
    assert planned.num_alive == sparsifier.num_alive
    assert planned.flops == regrow.count_flops(model, inputs, sparsifier.masks)


def test_a_plan_with_short_blocks_says_that_it_is_estimated() -> None:
    record = replace(regrow.rigl(sparsity=0.8, total_steps=10), pattern=output_blocks(4))
    planned = regrow.plan(mlp(), record, exclude="[02]")  # five outputs
    assert planned.estimated
    assert planned.num_alive == {"4.weight": 15}  # 6 of 32 blocks, of 2.5 weights on average
    assert not regrow.plan(mlp(), replace(record, sparsity=0.0), exclude="[02]").estimated


@pytest.mark.parametrize("recipe", [regrow.gradual_pruning, regrow.rigl_sm])
def test_shares_that_training_decides_are_called_estimated_and_their_sum_is_exact(recipe) -> None:
    planned = regrow.plan(mlp(), recipe(sparsity=0.8, total_steps=1000), exclude="4")
    assert planned.estimated
    assert list(planned.num_alive) == ["0.weight", "2.weight"]
    assert sum(planned.num_alive.values()) == round(0.2 * (12 * 24 + 24 * 16))
    assert planned.flops is None
    assert "estimated" in str(planned)


def test_a_plan_of_a_trillion_weights_takes_no_memory() -> None:
    before = resident()
    model = wide(2**17, 60)
    planned = regrow.plan(model, regrow.rigl(sparsity=0.99, total_steps=1000), torch.empty(1, 2**17))
    size = 60 * 2**34
    assert sum(layer.size for layer in planned.layers.values()) == size > 10**12
    assert abs(sum(planned.num_alive.values()) - 0.01 * size) <= 60
    assert planned.flops.dense == 2 * size
    assert planned.flops.sparse == 2 * sum(planned.num_alive.values())
    assert resident() - before < 2**28
    with pytest.raises(ValueError, match=r"to_empty.*regrow\.plan"):
        regrow.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), regrow.static(sparsity=0.9))


# Numbers past 2^31

HUGE = {"a": Layer("a", (2**17, 2**17)), "b": Layer("b", (2**16, 2**15), True), "c": Layer("c", (10, 10))}


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("distribution", [regrow.erk, regrow.er, regrow.uniform, PerLayer({"c": 0.0})])
def test_budgets_of_huge_layers_are_exact(distribution, sparsity: float) -> None:
    counts, size = distribution(HUGE, sparsity), sum(layer.size for layer in HUGE.values())
    kept_dense = HUGE["b"].size if distribution is regrow.uniform and counts["b"] == HUGE["b"].size else 0
    assert counts["a"] > LONG // 1000
    assert abs(sum(counts.values()) - kept_dense - round((1 - sparsity) * size)) <= len(HUGE)
    assert all(1 <= counts[name] <= layer.size for name, layer in HUGE.items())


def test_shares_of_huge_totals_add_up_to_the_last_weight() -> None:
    capacities = [2**34, 2**36, 2**34]
    for total in (LONG - 1, LONG, LONG + 1, 2**35 + 7, sum(capacities) - 1):
        given = apportion(total, [3.0, 1.0, 1 / 3], capacities)
        assert sum(given) == total
        assert all(0 <= have <= most for have, most in zip(given, capacities, strict=True))


def test_counts_over_long_runs_do_not_wrap() -> None:
    count = AliveCount(2**34)
    count.change(2**33 + 1, 0)
    count.advance(10**7)
    assert count.weight_steps == (2**33 + 1) * 10**7 > 2**56
    assert count.density == (2**33 + 1) / 2**34


def test_snip_keeps_its_number_beyond_2_to_the_24() -> None:
    """Where a quantile function, or a count in float32, ends."""
    model = nn.Linear(4200, 4000, bias=False)
    assert model.weight.numel() > 2**24
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.snip(sparsity=0.9))
    model.weight.grad = model.weight.detach().flip(0)
    optimizer.step()
    assert sparsifier.num_alive == {"weight": 1_680_000}
    assert int(sparsifier.masks["weight"].sum()) == 1_680_000


def test_grids_of_huge_layers() -> None:
    assert output_blocks(4).grid((2**18 + 1, 2**16)) == (2**16 + 1, 2**16)


class Counters(TorchDispatchMode):
    """Notes the type of every tensor of integers that an operation makes of others."""

    COUNTING = ("sum", "cumsum", "count_nonzero", "bincount", "argmax", "searchsorted", "nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in self.COUNTING and not made.is_floating_point():
            self.types.setdefault(name, set()).add(made.dtype)
        return made


@contextmanager
def counting() -> Iterator[dict[str, set[torch.dtype]]]:
    with Counters() as counters:
        yield counters.types


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_counts_weights_counts_in_64_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums and running counts of a selection hold more than 2^31, whatever the scores are kept in."""
    monkeypatch.setattr(selection, "select", lambda *given: None)  # C++ takes no weight that large
    scores, alive = torch.ones(6, 50, dtype=dtype), torch.ones(6, 50, dtype=torch.bool)
    with counting() as types:
        assert int(select(scores, 20, alive).sum()) == 20
        next_mask(alive, keep=90, budget=100, drop=scores, grow=scores)
    model = mlp().to(dtype)
    optimizer = sgd(model)
    with counting() as more:
        pruning = regrow.gradual_pruning(sparsity=0.5, total_steps=40, start=1, every=1)
        regrow.attach(model, optimizer, pruning)
        for step in range(3):
            inputs, targets = batch(step)
            nn.functional.cross_entropy(model(inputs.to(dtype)), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert {"sum", "cumsum", "count_nonzero"} <= set(types)
    assert "bincount" in more
    for name, found in [*types.items(), *more.items()]:
        assert found == {torch.int64}, name
