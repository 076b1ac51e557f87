"""Regions of dense layers: timed once, on the engine where that is faster, with nothing of the model touched."""

import copy
from pathlib import Path

import pytest
import torch
from nets import sgd
from torch import nn
from torch.nn import functional as F

import regrow
from regrow.compaction.capture import graph_forward
from regrow.compaction.capture.region import SWITCH, Region
from regrow.compaction.timings import region_timings, side_by_side, timing_cache
from regrow.compaction.timings.side_by_side import Timing
from regrow_lab.models import find_model

pytestmark = pytest.mark.usefixtures("runs_engine")
DENSE = regrow.static(sparsity=0.2)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(timing_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(side_by_side, "SECONDS", 0.0)
    monkeypatch.setattr(side_by_side, "ROUNDS", side_by_side.FEWEST)
    timing_cache.forget()


def net() -> nn.Module:
    torch.manual_seed(0)
    return find_model("wrn-10-1")(num_classes=10, dropout=0.3)


def attached(model: nn.Module) -> regrow.Sparsifier:
    return regrow.attach(model, sgd(model), DENSE, storage="compact")


def answers(monkeypatch: pytest.MonkeyPatch, *ratios: float) -> list[tuple[Region, torch.dtype]]:
    """Has the trial say these ratios, and returns the list of what was asked."""
    waiting, asked = list(ratios), list[tuple[Region, torch.dtype]]()

    def measure(region: Region, inputs: object, dtype: torch.dtype) -> Timing:
        asked.append((region, dtype))
        return Timing((waiting.pop(0),), spread=0.1, rounds=5)

    monkeypatch.setenv(SWITCH, "auto")
    monkeypatch.setattr(region_timings, "_measure", measure)
    return asked


@pytest.mark.parametrize(("ratio", "on_engine"), [(3.0, True), (1.05, False), (0.0, False)])
def test_the_faster_one_trains_a_dense_net(ratio: float, on_engine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, ratio)
    model = net()
    sparsifier = attached(model)
    model(torch.randn(32, 3, 8, 8)).sum().backward()
    assert len(asked) == 1
    assert bool(graph_forward.regions(model)) == on_engine
    assert ("engine" in str(sparsifier)) == on_engine
    model.eval()
    model(torch.randn(32, 3, 8, 8))
    assert not graph_forward.regions(model), "the trial is one of training"


def test_each_precision_is_timed_once_on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, 2.0, 0.5)
    for _ in range(3):
        timing_cache.forget()  # as another process
        model = net()
        attached(model)
        for enabled in (False, True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                model(torch.randn(32, 3, 8, 8)).float().sum().backward()
            assert bool(graph_forward.regions(model)) != enabled
    assert [dtype for _, dtype in asked] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("wanted", [False, True])
def test_the_gradient_of_images_is_timed_only_where_it_is_wanted(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)
    asked = list[tuple[region_timings.Source, ...]]()
    two = Timing((2.0,), spread=0.1, rounds=5)
    monkeypatch.setattr(region_timings, "_measure", lambda region, inputs, dtype: asked.append(tuple(inputs)) or two)
    model = net()
    attached(model)
    model(torch.randn(40, 3, 8, 8).requires_grad_(wanted)).sum().backward()
    assert asked == [(region_timings.Source((32, 3, 8, 8), wanted),)]


def test_few_images_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)
    model = net()
    attached(model)
    model(torch.randn(8, 3, 8, 8)).sum().backward()
    assert not graph_forward.regions(model)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_trial_leaves_no_trace(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "auto")
    monkeypatch.setattr(region_timings, "LEAST", float("inf"))
    model = net().to(memory_format=layout)
    plain = copy.deepcopy(model)
    attached(model)
    plain.load_state_dict(model.state_dict())
    inputs = torch.randn(32, 3, 8, 8).to(memory_format=layout)
    found = []
    for each in (plain, model):
        torch.manual_seed(5)
        output = each(inputs)
        output.sum().backward()
        found.append((output, torch.get_rng_state(), each.state_dict()))
    (expected, state, tensors), (output, other_state, other_tensors) = found
    assert torch.equal(output, expected)
    assert torch.equal(state, other_state)
    assert all(torch.equal(value, other_tensors[name]) for name, value in tensors.items())
    assert [[0 <= ratio < 1e3 for ratio in ratios] for ratios in timing_cache.believed().values()] == [[True]]


@pytest.mark.parametrize(("ratio", "spread"), [(3.0, 0.9), (1000.0, 0.1)])
def test_a_trial_that_cannot_be_trusted_leaves_the_region_to_torch(
    ratio: float, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch)
    monkeypatch.setattr(region_timings, "_measure", lambda region, inputs, dtype: Timing((ratio,), spread, rounds=5))
    model = net()
    attached(model)
    model(torch.randn(32, 3, 8, 8)).sum().backward()
    assert not graph_forward.regions(model)


def test_a_run_goes_on_with_the_answer_that_it_began_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for first, second in ((3.0, 1.0), (1.0, 3.0)):
        monkeypatch.setenv(timing_cache.VARIABLE, str(tmp_path / f"there-{first}"))
        timing_cache.forget()
        answers(monkeypatch, first, second)
        model = net()
        sparsifier = attached(model)
        model(torch.randn(32, 3, 8, 8)).sum().backward()
        saved = sparsifier.state_dict()
        timing_cache.forget()
        monkeypatch.setenv(timing_cache.VARIABLE, str(tmp_path / f"elsewhere-{first}"))
        for load in (True, False):
            other = net()
            its_sparsifier = attached(other)
            if load:
                its_sparsifier.load_state_dict(saved)
            other(torch.randn(32, 3, 8, 8)).sum().backward()
            assert bool(graph_forward.regions(other)) == (first == 3.0) == bool(graph_forward.regions(model))
        timing_cache.forget()
        other = net()
        attached(other)
        other(torch.randn(32, 3, 8, 8)).sum().backward()
        assert bool(graph_forward.regions(other)) == (second == 3.0)


def test_dense_layers_on_the_engine_train_as_with_torch() -> None:
    shape, losses = (32, 3, 8, 8), []
    recipe = regrow.gradual_pruning(sparsity=0.9, total_steps=60, every=2, start=4)
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn((8, *shape), generator=generator), torch.randint(10, (8, 32), generator=generator)
    for storage in ("dense", "compact"):
        torch.manual_seed(0)
        model = find_model("wrn-10-1")(num_classes=10, dropout=0.0).double()
        sparsifier = regrow.attach(model, optimizer := sgd(model), recipe, storage=storage)  # type: ignore[arg-type]
        losses.append(list[float]())
        for inputs, targets in zip(images.double(), labels, strict=True):
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert graph_forward.regions(model)
    assert "dense: density above 0.5; engine" in str(sparsifier)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
