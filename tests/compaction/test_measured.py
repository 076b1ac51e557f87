"""The table of what the engine is worth on this machine, and what it decides."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nets import batch, convnet, mlp, sgd, train
from torch import nn

import regrow
from regrow.compaction import cache as cache_files
from regrow.compaction import graph, measured, native, storage
from regrow.compaction.layers import CompactLayer
from regrow.compaction.region import SWITCH

pytestmark = pytest.mark.usefixtures("runs_engine")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(cache_files.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(SWITCH, "auto")
    monkeypatch.setattr(measured, "_measure", lambda probe, density: 0.1 / density if probe.kind == "linear" else 2.0)
    monkeypatch.setattr(storage, "SMALL", 0)
    measured.table.cache_clear()
    yield tmp_path / "cache"
    measured.table.cache_clear()


def test_it_is_measured_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured.table()
    (file,) = cache.iterdir()
    assert json.loads(file.read_text()) == first
    monkeypatch.setattr(measured, "_measure", lambda probe, density: 7.0)
    measured.table.cache_clear()
    assert measured.table() == first
    for damage in ("{", "[]", json.dumps({**first, "linear 128": {}}), json.dumps({**first, "linear 128": None})):
        file.write_text(damage)
        measured.table.cache_clear()
        assert measured.table()["linear 128"]["0.1"] == 7.0, "a damaged file is measured again"


def test_fewer_alive_weights_are_never_worth_less(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = {0.02: 3.0, 0.05: 2.0, 0.1: 4.0, 0.2: 0.5, 0.5: 0.8}
    monkeypatch.setattr(measured, "_measure", lambda probe, density: disturbed[density])
    found = [measured.speedup(measured.table(), nn.Linear(9, 9), 81, density) for density in measured.DENSITIES]
    assert found == [4.0, 4.0, 4.0, 0.8, 0.8]


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache_files.VARIABLE, str(tmp_path / "file"))
    assert measured.table()["kxk 32"]["0.1"] == 2.0


def test_it_is_read_between_its_densities() -> None:
    layer = nn.Linear(100, 100)
    for density in (0.02, 0.03, 0.1, 0.17, 0.5):
        assert measured.speedup(measured.table(), layer, 10_000, density) == pytest.approx(0.1 / density)
    assert measured.speedup(measured.table(), layer, 10_000, 0.001) == pytest.approx(5.0)
    assert [measured.speedup(measured.table(), nn.Conv2d(4, 4, k), 144, 0.3) for k in (1, 3)] == [2.0, 2.0]


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
    regions = graph.regions(model)
    compact = sum(isinstance(module, CompactLayer) for module in model.modules())
    assert sum(len(region.members[0]) for region in regions) == compact
    for name, mask in states[0][1].items():
        assert torch.equal(mask, states[1][1][name])


@pytest.mark.parametrize(("ratio", "left"), [(0.4, True), (0.6, False)])
def test_a_convolution_is_taken_out_of_its_region_only_where_that_pays(
    monkeypatch: pytest.MonkeyPatch, ratio: float, left: bool
) -> None:
    monkeypatch.setattr(measured, "_measure", lambda probe, density: ratio)
    model = convnet()
    recipe = regrow.static(sparsity=0.6, distribution={"3": 0.6})
    sparsifier = regrow.attach(model, sgd(model), recipe, storage="compact", exclude=["0", "7"])
    assert isinstance(model[3], CompactLayer) != left
    assert ("torch is faster here (0.40x" in str(sparsifier)) == left


def test_a_small_linear_layer_is_compact_as_soon_as_a_weight_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SMALL", 1024)
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
def test_the_real_measurement_is_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for probe in measured.PROBES:
        assert 0 < measured._measure(probe, 0.1) < 1000
    assert native.available()
