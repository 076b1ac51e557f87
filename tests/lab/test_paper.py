"""The paper's printed numbers against our accounting, and against the formulas they were made by."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import regrow
from regrow_lab.config import RunConfig
from regrow_lab.methods import METHODS
from regrow_lab.models import find_model
from regrow_lab.report.paper import Net, Published, Value
from regrow_lab.run.build import DISTRIBUTIONS
from regrow_lab.run.cost import account
from regrow_lab.studies import STUDIES, study_runs, table2, table3, table4, table5
from regrow_lab.studies.figure4 import RATIO_AT, SHARES, SPARSITIES, SPARSITY_AT
from regrow_lab.studies.settings import RESNET, WRN

STEPS = 88_000
REBUILT = ("table1", "table2", "table3", "table5", "struct")
TABLES = [table for name in REBUILT for table in STUDIES[name].report.printed] + [table4.PRINTED]
LABEL = re.compile(r"(?P<name>[\w -]+?)(_(?P<times>\d)x)?( \((?P<notes>.*)\))?")
UNIT = 0.0101
"""A unit of the last printed place: the paper rounds in one cell and cuts off in another."""


SLIPS = {
    *(("Table 2", label, 0.9) for label in ("Static_2x", "SET_2x")),
    *(("Table 2", label, 0.8) for label in ("SNFS_2x", "Static_2x", "RigL")),
    *(("Table 3", "Lottery", sparsity) for sparsity in (0.9, 0.8)),
    *((name, "RigL", 0.8) for name in ("Table 4", "Table 5, CIFAR-10", "Supplementary Table 2, CIFAR-10")),
}


def cells() -> Iterator[tuple[Published, str, float, Value]]:
    for table in TABLES:
        for label, row in table.rows.items():
            for sparsity, value in row.items():
                yield table, label, sparsity, value


def read(label: str) -> tuple[str, str, int, bool]:
    """method, distribution, multiplier, and whether it starts from another run, of a row's label."""
    found = LABEL.fullmatch(label)
    assert found
    notes = found["notes"] or ""
    method = {record.label: method for method, record in METHODS.items()}[found["name"]]
    return method, "erk" if "ERK" in notes else "uniform", int(found["times"] or 1), "from" in notes


FIXED = ("static", "set", "rigl", "small-dense")
"""Methods whose FLOPs are known without training."""
WITH_FLOPS = [cell for cell in cells() if cell[3].train is not None]
KNOWN = [cell for cell in WITH_FLOPS if read(cell[1])[0] in FIXED and not read(cell[1])[3]]
FOUND = [cell for cell in WITH_FLOPS if cell not in KNOWN]


@pytest.mark.parametrize(
    ("table", "label", "sparsity", "value"), KNOWN, ids=lambda part: str(getattr(part, "name", part))
)
def test_flop_columns_agree_with_ours(table: Published, label: str, sparsity: float, value: Value) -> None:
    method, distribution, times, _ = read(label)
    config = RunConfig(
        model=table.net.model, method=method, sparsity=sparsity, every=100,
        distribution=None if method == "small-dense" else distribution,
    )  # fmt: skip
    counted = account(config, STEPS)
    assert not counted["estimated"]
    assert counted["test_ratio"] == pytest.approx(value.test, abs=UNIT)
    assert counted["train_ratio"] * times == pytest.approx(value.train, abs=UNIT * times)


def test_flops_of_whole_channels_are_those_of_the_net_that_trains() -> None:
    counted = account(RunConfig(model="wrn-10-1", method="rigl-struct", sparsity=0.9), STEPS)
    model = find_model("wrn-10-1")()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl_struct(sparsity=0.9, total_steps=STEPS))
    assert not counted["estimated"]
    assert counted["sparse_flops"] == sparsifier.flops(torch.zeros(1, 3, 32, 32)).sparse


@pytest.mark.parametrize("net", [WRN, RESNET], ids=lambda net: net.model)
def test_dense_flops_agree_with_ours(net: Net) -> None:
    train, forward = net.dense_flops
    ours = account(RunConfig(model=net.model), STEPS)["dense_flops"]
    assert ours == pytest.approx(forward, rel=0.005)
    assert 3 * ours == pytest.approx(train, rel=0.005)


def test_flops_that_training_decides_follow_the_formulas_but_for_the_marked_slips() -> None:
    """SNFS 2 E + f_d, redistribution RigL's formula, lottery its pruning run and 3 f_s."""
    wrong = set()
    for table, label, sparsity, value in FOUND:
        method, _, times, _ = read(label)
        assert value.train is not None
        assert value.test is not None
        expected = {
            "snfs": (2 * value.test + 1) / 3,
            "lottery": (table.rows["Pruning"][sparsity].train or 0) + value.test if "Pruning" in table.rows else None,
            "pruning": None,
        }.get(method, value.test)
        if expected is not None and abs(expected * times - value.train) > 0.016 * times:
            wrong.add((table.name, label, sparsity))
    assert wrong == {("Table 2", "SNFS_2x", 0.8), ("Table 3", "Lottery", 0.9), ("Table 3", "Lottery", 0.8)}
    assert wrong <= SLIPS


def test_pruning_trains_at_the_mean_of_its_ramp() -> None:
    """3 E[f_s] along our ramp, its forward FLOPs read off the printed test columns, straight from point to point.

    WRN-22-2 comes out as printed. The forward FLOPs of ResNet-50 are concave in the density (its large late layers,
    cheap by the weight, are pruned first), so that straight lines between three points give a lower bound.
    """
    for table, least, most in ((table2.PRINTED, -UNIT, UNIT), (table3.PRINTED, 0.0, 0.07)):
        printed = table.rows["Pruning"]
        alive, forward = zip(*sorted((1 - sparsity, value.test) for sparsity, value in printed.items()), strict=True)
        for sparsity, value in printed.items():
            algorithm = regrow.gradual_pruning(sparsity=sparsity, total_steps=STEPS, stop=65_918)
            assert callable(algorithm.sparsity)
            densities = [1 - algorithm.sparsity(step // 100 * 100) for step in range(0, STEPS, 50)]
            mean = np.interp(densities, (0.0, *alive, 1.0), (0.0, *forward, 1.0)).mean()
            assert value.train is not None
            assert least <= value.train - mean <= most, (table.name, sparsity, mean)


def test_every_slip_is_in_a_table_and_marked() -> None:
    assert {(table.name, label, sparsity) for table, label, sparsity, value in cells() if value.slip} == SLIPS
    assert table2.PRINTED.rows["SNFS_2x"][0.8].test == 0.98  # as printed
    assert table5.PRINTED_CIFAR_10.rows["RigL"][0.8].accuracy != table2.PRINTED.rows["RigL"][0.8].accuracy


def test_walls_of_the_supplementary_are_its_flops() -> None:
    pairs = zip(STUDIES["struct"].report.printed, (table2.PRINTED, table3.PRINTED), strict=True)
    for table, flops in pairs:
        for sparsity in (0.9, 0.8):
            for struct, rigl in (("RigL-struct", "RigL"), ("RigL-struct (ERK)", "RigL (ERK)")):
                assert table.rows[struct][sparsity].wall == flops.rows[rigl][sparsity].train


@pytest.mark.parametrize("study", REBUILT)
def test_a_study_at_the_papers_scale_has_every_row_of_its_tables(study: str) -> None:
    runs = study_runs(study, 1, "paper")
    ours = {(run.model, run.method, run.distribution, run.multiplier, bool(run.start), run.sparsity) for run in runs}
    for table in STUDIES[study].report.printed:
        for label, row in table.rows.items():
            method, distribution, times, starts = read(label)
            shared = (
                distribution
                if method in ("static", "set", "rigl", "snfs", "rigl-sg", "rigl-sm", "rigl-struct")
                else None
            )
            for sparsity in row:
                assert (table.net.model, method, shared, times, starts, sparsity) in ours


def test_the_papers_settings() -> None:
    for run in study_runs("table2", 1, "paper"):
        steps = -(-45_000 // run.batch_size) * run.epochs
        assert (steps, int(run.stop * steps), int(run.pruning_start * steps)) == (88_000, 65_918, 700)
        assert (run.model, run.data, run.validation) == ("wrn-22-2", "cifar10", 5_000)
    assert {run.validation for run in study_runs("table1", 1, "paper")} == {0}
    for run in study_runs("table3", 1, "paper"):
        assert (run.label_smoothing, run.warmup_steps, run.weight_decay) == (0.1, 1_760, 1e-4)
    assert {run.data for run in study_runs("table2", 1, "paper", "cifar10-jpeg")} == {"cifar10-jpeg"}


SHAPES = {"cifar10": (3, 10, 32), "cifar100": (3, 100, 32), "digits-images": (1, 10, 8)}


@pytest.mark.parametrize("net", SPARSITY_AT, ids="-".join)
def test_the_sparsities_of_figure4_are_what_the_library_solves(net: tuple[str, str]) -> None:
    channels, classes, side = SHAPES[net[1]]
    with torch.device("meta"):
        model = find_model(net[0])(**({"channels": 1} if channels == 1 else {}), num_classes=classes)
        flops = regrow.count_flops(model, torch.zeros(1, channels, side, side))
    layers = regrow.find_layers(model)
    for name, sparsities in SPARSITY_AT[net].items():
        for share, sparsity in zip(SHARES, sparsities, strict=True):
            solved = regrow.sparsity_at_flops(DISTRIBUTIONS[name](flops), layers, flops, share)
            assert sparsity == pytest.approx(solved, abs=2e-5)
    for name, ratios in RATIO_AT[net].items():
        for sparsity, ratio in zip(SPARSITIES, ratios, strict=True):
            counts = DISTRIBUTIONS[name](flops)(layers, sparsity)
            forward = sum(flops.layers[each].dense * counts[each] / layers[each].size for each in layers)
            every = 20 if net[1] == "digits-images" else 100
            train = regrow.train_flops(regrow.rigl(sparsity=sparsity, total_steps=9, every=every), forward, flops.dense)
            assert ratio == pytest.approx(train / (3 * flops.dense), abs=6e-5)


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", [name for name in STUDIES if name != "digits"])
def test_every_study_at_either_scale_holds_each_run_once_and_what_its_runs_start_from(name: str, scale: str) -> None:
    runs = study_runs(name, 2, scale)
    ids = [run.run_id for run in runs]
    assert len(set(ids)) == len(ids)
    assert set(ids) >= {run.prerequisite.run_id for run in runs if run.prerequisite}
    assert set(ids) > {run.run_id for run in study_runs(name, 1, scale)}


def test_refusals_of_scales_and_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="study table2 has no scale 'large': choose small or paper"):
        study_runs("table2", 1, "large")
    assert {run.model for run in study_runs("table2", 1, "small", "mnist")} == {"lenet-300-100"}
    assert {run.model for run in study_runs("table5", 1, "small", "mnist")} == {"wrn-10-1"}
    with pytest.raises(ValueError, match=r"study digits has no scale 'paper': choose small$"):
        study_runs("digits", 1, "paper")
    with pytest.raises(ValueError, match="no sparsities for wrn-22-2 on mnist"):
        study_runs("figure4", 1, "paper", "mnist")


def test_equal_flops_runs_are_as_long_as_dense_training_pays_for() -> None:
    runs = [run for run in study_runs("figure4", 1, "paper") if run.multiplier not in (1, 2, 3)]
    assert len(runs) == 8
    for run in runs:
        assert run.total_epochs * account(run, STEPS)["train_ratio"] / run.epochs == pytest.approx(1, abs=0.005)
