"""The table of what the engine is worth on this machine, and what it decides."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from nets import batch, convnet, mlp, sgd, train
from torch import nn

import regrow
from regrow.compaction import policy
from regrow.compaction.capture import graph_forward
from regrow.compaction.capture.region import SWITCH
from regrow.compaction.compact_modules import CompactLayer
from regrow.compaction.timings import layer_timings, side_by_side
from regrow.compaction.timings import timing_cache as cache_files
from regrow.compaction.timings.layer_timings import Probe
from regrow.compaction.timings.side_by_side import Timing

pytestmark = pytest.mark.usefixtures("runs_engine")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(cache_files.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(SWITCH, "auto")
    says(monkeypatch, lambda probe, density: 0.1 / density if probe.kind == "linear" else 2.0)
    monkeypatch.setattr(policy, "SMALL", 0)
    cache_files.forget()
    yield tmp_path / "cache"
    cache_files.forget()


def says(monkeypatch: pytest.MonkeyPatch, ratio: Callable[[Probe, float], float], spread: float = 0.1) -> list[str]:
    """Has the measurement give these ratios, and returns the list of the probes that were asked for."""
    asked = list[str]()

    def measure(probe: Probe) -> Timing:
        asked.append(probe.name)
        return Timing(tuple(ratio(probe, density) for density in layer_timings.DENSITIES), spread, rounds=5)

    monkeypatch.setattr(layer_timings, "_measure", measure)
    return asked


def ratios(name: str) -> list[float]:
    """Of a probe, as a process that has just begun finds them."""
    cache_files.forget()
    return list(layer_timings.ratios_of(next(probe for probe in layer_timings.PROBES if probe.name == name)))


def test_it_is_measured_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ratios("linear 128")
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["ratios"] == first == [5.0, 2.0, 1.0, 0.5, 0.2]
    asked = says(monkeypatch, lambda probe, density: 1.5)
    assert ratios("linear 128") == first
    assert not asked
    assert ratios("kxk 32") == [1.5] * 5
    assert asked == ["kxk 32"]


def test_only_the_kinds_of_layers_that_a_model_has_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(monkeypatch, lambda probe, density: 2.0)
    shares = {"0": 0.9, "3": 0.9, "7": 0.3}
    model = convnet()
    recipe = regrow.static(sparsity=0.868421, distribution=shares)
    regrow.attach(model, sgd(model), recipe, storage="compact")
    assert asked == ["kxk 32"]


def test_ratios_that_cannot_be_are_measured_again_and_then_not_believed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = [3.8, 3.7, 3.2, 2.5, 1.1]
    for slip in (
        lambda probe, density: 281.0 if density == 0.02 else 0.1 / density,  # no layer is
        lambda probe, density: 6.0,  # half of the weights, and six times as fast
        lambda probe, density: density,  # fewer weights take longer
        lambda probe, density: 2.0 if density != 0.1 else 3.0,
        lambda probe, density: 0.001,
    ):
        asked = says(monkeypatch, slip)
        assert ratios("linear 128") == usual
        assert asked == ["linear 128"] * side_by_side.ATTEMPTS
        (file,) = cache.iterdir()
        assert json.loads(file.read_text())["trusted"] is False
        file.unlink()
    asked = says(monkeypatch, lambda probe, density: 0.1 / density, spread=0.9)
    assert ratios("linear 128") == usual
    assert len(asked) == side_by_side.ATTEMPTS


def test_a_little_disorder_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = {0.02: 3.6, 0.05: 3.8, 0.1: 4.0, 0.2: 0.7, 0.5: 0.8}
    says(monkeypatch, lambda probe, density: disturbed[density])
    assert ratios("linear 128") == [4.0, 4.0, 4.0, 0.8, 0.8]


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache_files.VARIABLE, str(tmp_path / "file"))
    assert ratios("kxk 32") == [2.0] * 5


def test_it_is_read_between_its_densities() -> None:
    layer = nn.Linear(100, 100)
    for density in (0.02, 0.03, 0.1, 0.17, 0.5):
        assert layer_timings.speedup({}, layer, 10_000, density) == pytest.approx(0.1 / density)
    assert layer_timings.speedup({}, layer, 10_000, 0.001) == pytest.approx(5.0)
    assert [layer_timings.speedup({}, nn.Conv2d(4, 4, k), 144, 0.3) for k in (1, 3)] == [2.0, 2.0]


def test_a_layer_stays_with_torch_where_that_is_faster() -> None:
    shares = {"0": 0.95, "2": 0.8, "4": 0.92}
    states, recipe = [], regrow.rigl(sparsity=0.867, total_steps=40, every=5, distribution=shares)
    for kind in ("dense", "compact"):
        model = mlp(width=48)
        optimizer = sgd(model)
        sparsifier = regrow.attach(model, optimizer, recipe, storage=kind, strict=True)  # type: ignore[arg-type]
        train(model, optimizer, range(12))
        states.append((model.state_dict(), sparsifier.masks))
    for name, density in sparsifier.densities.items():
        assert isinstance(model.get_submodule(name.rpartition(".")[0]), CompactLayer) == (density <= 0.1), name
    table = str(sparsifier)
    assert "dense: torch is faster here" in table
    assert "compact: engine" in table
    regions = graph_forward.regions(model)
    compact = sum(isinstance(module, CompactLayer) for module in model.modules())
    assert sum(len(region.members[0]) for region in regions) == compact
    for name, mask in states[0][1].items():
        assert torch.equal(mask, states[1][1][name])


@pytest.mark.parametrize(("ratio", "left"), [(0.4, True), (0.6, False)])
def test_a_convolution_is_taken_out_of_its_region_only_where_that_pays(
    monkeypatch: pytest.MonkeyPatch, ratio: float, left: bool
) -> None:
    says(monkeypatch, lambda probe, density: ratio)
    model = convnet()
    recipe = regrow.static(sparsity=0.6, distribution={"3": 0.6})
    sparsifier = regrow.attach(model, sgd(model), recipe, storage="compact", exclude=["0", "7"])
    assert isinstance(model[3], CompactLayer) != left
    assert ("torch is faster here (0.40x" in str(sparsifier)) == left


def test_a_small_linear_layer_is_compact_as_soon_as_a_weight_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "SMALL", 1024)
    shares = {"0": 0.2, "2": 0.0, "4": 0.2, "6": 0.2}
    layers = (nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 33), nn.Conv2d(4, 4, 3))
    model = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))
    recipe = regrow.static(sparsity=0.137007, distribution=shares)
    sparsifier = regrow.attach(model, sgd(model), recipe, storage="compact")
    compact = [name for name, layer in model.named_children() if isinstance(layer, CompactLayer)]
    assert compact == ["0"]
    assert "no weight is dead" in str(sparsifier)
    assert str(sparsifier).count("density above 0.5") == 2


def test_the_environment_overrules_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, compact in (("engine", True), ("torch", True), ("auto", False)):
        monkeypatch.setenv(SWITCH, word)
        model = mlp()
        recipe = regrow.static(sparsity=0.7, distribution=regrow.uniform)
        sparsifier = regrow.attach(model, sgd(model), recipe, storage="compact")
        model(batch(0)[0])
        assert ("compact" in str(sparsifier)) == compact
        assert ("torch, weights scattered" in str(sparsifier)) == (word == "torch")
    monkeypatch.setenv(SWITCH, "gpu")
    model = mlp()
    with pytest.raises(ValueError, match="expected 'auto', 'engine' or 'torch'"):
        regrow.attach(model, sgd(model), recipe, storage="compact")


@pytest.mark.slow
def test_the_real_measurement_is_sane_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = torch.get_rng_state()
    for probe in layer_timings.PROBES:
        found = layer_timings._measure(probe)
        assert all(0 < ratio < 1000 for ratio in found.ratios)
        assert found.rounds >= side_by_side.FEWEST
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["linear 128", "1x1 64"])
def test_what_is_believed_without_measuring_is_near_what_is_measured(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another machine than the one the numbers come from: within a factor."""
    monkeypatch.undo()
    monkeypatch.setattr(side_by_side, "SECONDS", 0.0)
    probe = next(probe for probe in layer_timings.PROBES if probe.name == name)
    found = layer_timings._measure(probe)
    assert all(1 / 8 < ratio / usual < 8 for ratio, usual in zip(found.ratios, probe.usual, strict=True))


def twin() -> tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier]:
    model = mlp(width=48)
    optimizer = sgd(model)
    shares = {"0": 0.95, "2": 0.8, "4": 0.92}
    recipe = regrow.rigl(sparsity=0.867, total_steps=40, every=5, distribution=shares)
    return model, optimizer, regrow.attach(model, optimizer, recipe, storage="compact", strict=True)


def places(sparsifier: regrow.Sparsifier, model: nn.Module) -> dict[str, bool]:
    return {name: isinstance(model.get_submodule(name.rpartition(".")[0]), CompactLayer) for name in sparsifier.masks}


@pytest.mark.parametrize("now", [0.001, 0.02, 0.3])
def test_a_run_goes_on_with_the_decisions_that_it_began_with(
    now: float, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer, sparsifier = twin()
    train(model, optimizer, range(12))
    saved = copy.deepcopy([part.state_dict() for part in (model, optimizer, sparsifier)])
    decided = places(sparsifier, model)
    assert set(decided.values()) == {True, False}
    train(model, optimizer, range(12, 30))

    for order in (0, 1, 2), (2, 1, 0):
        cache_files.forget()
        monkeypatch.setenv(cache_files.VARIABLE, str(cache / f"{order}"))
        says(monkeypatch, lambda probe, density: max(now / density, 0.02))
        other, its_optimizer, its_sparsifier = parts = twin()
        assert places(its_sparsifier, other) != decided
        for number in order:
            parts[number].load_state_dict(copy.deepcopy(saved[number]))
        assert places(its_sparsifier, other) == decided
        train(other, its_optimizer, range(12, 30))
        assert places(its_sparsifier, other) == places(sparsifier, model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), (order, name)
        again = its_sparsifier.state_dict()
        assert again["storage"] == sparsifier.state_dict()["storage"]


def test_a_layer_that_has_risen_above_one_half_stays_where_it_was() -> None:
    _, _, sparsifier = twin()
    saved = sparsifier.state_dict()
    saved["storage"]["compact"]["2.weight"] = True
    fresh, _, its_sparsifier = twin()
    its_sparsifier.load_state_dict(saved)
    assert places(its_sparsifier, fresh)["2.weight"]


def test_states_of_dense_storage_and_of_before_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, sparsifier = twin()
    decided, saved = places(sparsifier, model), sparsifier.state_dict()
    for storage_of in ({}, None):
        state = {key: value for key, value in saved.items() if key != "storage"}
        if storage_of is not None:
            state["storage"] = storage_of
        fresh, _, its_sparsifier = twin()
        its_sparsifier.load_state_dict(state)
        assert places(its_sparsifier, fresh) == decided
    dense = mlp(width=48)
    shares = {"0": 0.95, "2": 0.8, "4": 0.92}
    recipe = regrow.rigl(sparsity=0.867, total_steps=40, every=5, distribution=shares)
    its_sparsifier = regrow.attach(dense, sgd(dense), recipe)
    its_sparsifier.load_state_dict(saved)
    assert its_sparsifier.state_dict()["storage"] == {}


@pytest.mark.parametrize(
    "damage",
    [
        None,
        [],
        {"compact": [1]},
        {"compact": {"0.weight": 1}},
        {"ratios": {"layer-x": "fast"}},
        {"ratios": {"layer-x": ["2.0"]}},
        {"ratios": {"layer-x": [float("nan")]}},
        {"ratios": {"layer-x": [-1.0]}},
        {"ratios": []},
    ],
)
def test_a_state_with_a_damaged_storage_is_refused_and_changes_nothing(damage: object) -> None:
    _, _, sparsifier = twin()
    before = sparsifier.state_dict()
    with pytest.raises(ValueError, match=r"its storage is .*; the file is damaged"):
        sparsifier.load_state_dict({**before, "seed": 5, "storage": damage})
    assert sparsifier.seed == 0
    assert sparsifier.state_dict()["storage"] == before["storage"]


def test_ratios_of_an_odd_length_are_measured_anew() -> None:
    model, _, sparsifier = twin()
    saved, decided = sparsifier.state_dict(), places(sparsifier, model)
    saved["storage"]["ratios"] = {name: [1.0] for name in saved["storage"]["ratios"]}
    sparsifier.load_state_dict(saved)
    assert places(sparsifier, model) == decided
    model(batch(0)[0])
