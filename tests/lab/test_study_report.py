"""Studies' own tables, figures and the page of claims, from made-up runs; and `regrow study all` on tiny real ones."""

import csv
import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from stored import made_study, store_run

from regrow_lab.commands import study
from regrow_lab.commands.cli import main
from regrow_lab.config import RunConfig
from regrow_lab.launch import Local, Outcome
from regrow_lab.methods import imp_sparsity
from regrow_lab.report.claims import claims_page
from regrow_lab.report.comparison import comparisons
from regrow_lab.report.pairs import Pair, quantile
from regrow_lab.report.plain_tables import Grid, to_csv, to_markdown, to_text
from regrow_lab.report.study_report import Results
from regrow_lab.report.summary import Summary
from regrow_lab.store.folders import open_study, read_runs
from regrow_lab.studies import STUDIES, charlm, figure3, figure4, storages, struct, table1, table2, table5, tickets
from regrow_lab.studies.reports import report_folder, write_claims

WRN = {"model": "wrn-22-2", "data": "cifar10"}
TABLE_2 = (table2.PRINTED,)
CLAIMS = [each.claims for each in STUDIES.values()]


def cells(directory: Path) -> tuple[Summary, ...]:
    return Results(read_runs(directory)).cells


def by_label(grid: Grid) -> dict[tuple[str, str], dict[str, str]]:
    names = [f"paper {grid.head[i - 1]}" if name == "paper" else name for i, name in enumerate(grid.head)]
    rows = (dict(zip(names, row, strict=True)) for row in grid.rows)
    return {(row["Method"], row["S"]): row for row in rows}


def seeds(directory: Path, *arguments: Any, mean: float, spread: float = 0.1, number: int = 3, **settings: Any) -> None:
    for seed in range(number):
        store_run(directory, *arguments, accuracy=mean + spread * (seed - 1), seed=seed, **settings)


def test_ours_stands_beside_the_papers_with_the_difference(tmp_path: Path) -> None:
    seeds(tmp_path, "rigl", 0.9, mean=92.0, **WRN, result={"seconds": 7200, "peak_memory_mib": 1600.4})
    seeds(tmp_path, "snip", 0.9, mean=91.0, **WRN)
    seeds(tmp_path, "dense", 0.0, mean=93.0, **WRN)
    (grid,) = comparisons(cells(tmp_path), TABLE_2, "paper")
    rows = by_label(grid)
    assert rows["RigL (ERK)", "0.9"] == {
        "Method": "RigL (ERK)",
        "S": "0.9",
        "n": "3",
        "accuracy": "92.0 ± 0.10",
        "paper accuracy": "92.4 ± 0.06",
        "difference": "-0.4",
        "FLOPs train, test": "0.100x, 0.100x",
        "paper FLOPs train, test": "0.17x, 0.17x",
        "peak MiB": "1,600",
        "hours": "2.00",
    }
    assert (rows["SNIP", "0.9"]["paper accuracy"], rows["SNIP", "0.9"]["difference"]) == ("–", "–")
    assert rows["Dense", "0"]["paper FLOPs train, test"] == "9.45e+08, 3.15e+08"
    assert rows["RigL_2x", "0.8"]["accuracy"] == "–"  # the paper's rows that we lack are shown
    assert {label for label, _ in rows} == {"SNIP"} | set(table2.PRINTED.rows)
    assert rows["SNFS_2x", "0.8"]["paper accuracy"] == "93.2 ± 0.14‡"
    assert any(note.startswith("‡ SNFS_2x, S = 0.8: test FLOPs are printed as 0.98x") for note in grid.notes)


@pytest.mark.parametrize(
    ("scale", "settings", "said"),
    [
        ("paper", WRN, "The same net and schedule."),
        ("paper", WRN | {"data": "cifar10-jpeg"}, "its images as cifar10-jpeg: not the paper's bytes"),
        ("small", WRN, "another schedule"),
        ("small", {}, "Another net or other data"),
    ],
)
def test_a_table_says_at_which_scale_ours_was_made(
    scale: str, settings: dict[str, str], said: str, tmp_path: Path
) -> None:
    store_run(tmp_path, **settings)
    (grid,) = comparisons(cells(tmp_path), TABLE_2, scale)
    assert grid.notes[0].startswith(f"Ours: scale {scale}, ")
    assert said in " ".join(grid.notes)


def test_each_printed_table_is_beside_the_net_that_it_is_about(tmp_path: Path) -> None:
    store_run(tmp_path, "rigl-sm", **WRN)
    store_run(tmp_path, "rigl-sm", model="resnet50-cifar", data="cifar100")
    titles = [grid.title for grid in comparisons(cells(tmp_path), table5.TABLE5.report.printed, "paper")]
    assert titles == [
        "resnet50-cifar on cifar100, beside Table 5, CIFAR-100 of the report",
        "wrn-22-2 on cifar10, beside Table 5, CIFAR-10 of the report",
    ]
    both = comparisons(cells(tmp_path)[-1:], table1.TABLE1.report.printed, "paper")
    assert [grid.title.split("beside ")[1] for grid in both] == [
        "Table 1 of the report",
        "Table 1, original of the report",
    ]


def test_bits_and_measured_times_have_columns_where_there_are_any(tmp_path: Path) -> None:
    for seed, bits in enumerate((2.0, 2.2)):
        store_run(tmp_path / "text", "rigl", seed=seed, result={"test_bits": bits})
    (grid,) = comparisons(cells(tmp_path / "text"))
    assert by_label(grid)["RigL (ERK)", "0.9"]["bits/char."] == "2.100 ± 0.141"
    assert "paper" not in grid.head
    store_run(tmp_path / "struct", "rigl-struct", **WRN, result={"wall": {"train_ratio": 0.5, "test_ratio": 0.4}})
    (grid,) = comparisons(cells(tmp_path / "struct"), struct.STRUCT.report.printed, "paper")
    row = by_label(grid)["RigL-struct (ERK)", "0.9"]
    assert (row["time train, test"], row["paper time train, test"]) == ("0.50x, 0.40x", "0.17x")
    store_run(tmp_path / "struct", "rigl", **WRN, result={"wall": {"train_ratio": 1.0, "test_ratio": 0.8}})
    (grid,) = comparisons(cells(tmp_path / "struct"), struct.STRUCT.report.printed, "paper")
    assert by_label(grid)["RigL-struct (ERK)", "0.9"]["time ÷ RigL's"] == "0.50x, 0.50x"
    assert by_label(grid)["RigL (ERK)", "0.9"]["time ÷ RigL's"] == "–"


def test_a_grid_lines_up_in_every_form() -> None:
    grid = Grid("A title", ("Method", "S", "empty"), (("RigL | x", "0.9", "–"), ("SET", "0.95", "–")), ("A note.",))
    small = grid.without_empty_columns()
    assert small.head == ("Method", "S")
    assert to_text(small).splitlines()[2:6] == ["Method       S", "--------------", "RigL | x   0.9", "SET       0.95"]
    assert to_markdown(small).splitlines()[2] == "| RigL \\| x |  0.9 |"
    assert list(csv.reader(io.StringIO(to_csv(small)))) == [["Method", "S"], ["RigL | x", "0.9"], ["SET", "0.95"]]


def verdicts(*studies: Path) -> dict[str, tuple[str, int]]:
    of_each = [cells(study) for study in studies]
    claims = [claim for each in CLAIMS for answers in each.values() for claim in answers.items()]
    judged = {text: judge(of_each) for text, judge in claims}
    return {text: (verdict.word, verdict.cells) for text, verdict in judged.items()}


def test_claims_hold_or_not_by_the_stored_runs_alone(tmp_path: Path) -> None:
    seeds(tmp_path, "dense", 0.0, mean=98.0)
    for sparsity in (0.9, 0.95):
        seeds(tmp_path, "rigl", sparsity, mean=97.0)
        seeds(tmp_path, "set", sparsity, mean=95.0)
        seeds(tmp_path, "pruning", sparsity, mean=97.05)
        seeds(tmp_path, "snfs", sparsity, mean=97.9)
        seeds(tmp_path, "small-dense", sparsity, mean=97.6)
    found = verdicts(tmp_path)
    assert found["RigL is above SET"] == ("holds", 2)
    assert found["RigL (ERK) is no worse than iterative pruning"] == ("holds", 2)  # within the noise
    assert found["RigL is no worse than SNFS at a fraction of its training FLOPs"] == ("does not hold", 2)
    assert found["RigL is above a small dense net of as many weights"] == ("does not hold", 2)
    assert found["RigL_2x (ERK) is no worse than iterative pruning"] == ("not tested", 0)
    assert found["RigL-struct is below RigL"] == ("not tested", 0)


def test_what_is_noise_or_a_single_seed_or_a_collapse_is_no_support(tmp_path: Path) -> None:
    seeds(tmp_path / "noise", "rigl", 0.9, mean=97.0, spread=2.0)
    seeds(tmp_path / "noise", "set", 0.9, mean=96.0, spread=2.0)
    assert verdicts(tmp_path / "noise")["RigL is above SET"] == ("not shown", 1)
    for method, mean in (("rigl", 97.0), ("set", 90.0)):
        seeds(tmp_path / "single", method, 0.9, mean=mean, number=1)
        seeds(tmp_path / "flat", method, 0.9, mean=mean, spread=0.0)
    assert verdicts(tmp_path / "single")["RigL is above SET"] == ("not tested", 0)
    assert verdicts(tmp_path / "flat")["RigL is above SET"] == ("not shown", 1)  # no spread, nothing to judge by
    seeds(tmp_path / "collapse", "dense", 0.0, mean=98.0)
    seeds(tmp_path / "collapse", "rigl", 0.99, mean=40.0)
    seeds(tmp_path / "collapse", "set", 0.99, mean=20.0)
    seeds(tmp_path / "collapse", "snfs", 0.99, mean=90.0)
    found = verdicts(tmp_path / "collapse")
    assert found["RigL is above SET"] == ("not tested", 0), "both have collapsed"
    assert found["RigL is no worse than SNFS at a fraction of its training FLOPs"] == ("does not hold", 1), "one has"


def test_one_cell_of_many_is_chance_and_many_of_one_direction_are_not(tmp_path: Path) -> None:
    sparsities = [0.5 + 0.04 * number for number in range(10)]
    for number, sparsity in enumerate(sparsities):
        for method, mean in (("rigl", 96.0 + 3 * (number == 0) - 0.2 * (number % 2)), ("set", 95.9), ("static", 95.0)):
            seeds(tmp_path, method, sparsity, mean=mean, spread=1.2 if number else 0.1)
    found = verdicts(tmp_path)
    assert found["RigL is above SET"] == ("not shown", 10), "one in ten beyond noise, five of the others each way"
    assert found["RigL is above static sparse training"] == ("holds", 10), "all ten in one direction, one beyond noise"


def test_a_claim_about_text_is_about_the_language_model_alone(tmp_path: Path) -> None:
    claim = "on text pruning is above RigL (the original's figure)"
    for model, data in (("char-gru", "tinyshakespeare"), ("lenet-300-100", "digits")):
        for method, mean, name in (("rigl", 45.0, "uniform"), ("pruning", 47.0, None)):
            settings = {"model": model, "data": data, "distribution": name}
            seeds(tmp_path / model, method, 0.75, mean=mean, **settings)
    assert verdicts(tmp_path / "char-gru")[claim] == ("holds", 1)
    assert verdicts(tmp_path / "lenet-300-100")[claim] == ("not tested", 0)


def test_measured_time_is_held_against_flops(tmp_path: Path) -> None:
    assert struct.time_against_flops([]).word == "not tested"
    store_run(
        tmp_path,
        "rigl-struct",
        0.9,
        **WRN,
        result={"train_ratio": 0.2, "wall": {"train_ratio": 0.21, "test_ratio": 0.2}},
    )
    assert struct.time_against_flops([cells(tmp_path)]).word == "holds"
    store_run(
        tmp_path,
        "rigl-struct",
        0.8,
        **WRN,
        result={"train_ratio": 0.3, "wall": {"train_ratio": 0.6, "test_ratio": 0.5}},
    )
    verdict = struct.time_against_flops([cells(tmp_path)])
    assert verdict.word == "does not hold"
    assert "1 of 2 cells within 10%" in verdict.figures
    assert "S = 0.8: time 0.60x, FLOPs 0.30x" in verdict.figures


def test_a_claim_may_be_divided_between_nets(tmp_path: Path) -> None:
    claim = "RigL is above a small dense net of as many weights"
    for settings, mean in (({}, 95.0), (WRN, 97.0)):
        for sparsity in (0.9, 0.95):
            seeds(tmp_path, "rigl", sparsity, mean=mean, **settings)
            seeds(tmp_path, "small-dense", sparsity, mean=96.0, **settings)
    assert verdicts(tmp_path)[claim] == ("divided", 4)
    page = claims_page(CLAIMS, {"both": cells(tmp_path)}, {"both": "two nets"})
    assert "lenet-300-100 on digits 0 of 2 up, mean -1.00: does not hold" in page
    assert "wrn-22-2 on cifar10 2 of 2 up, mean +1.00: holds" in page


def test_no_worse_has_a_margin(tmp_path: Path) -> None:
    claim = "RigL is no worse than SNFS at a fraction of its training FLOPs"
    for mean, word in ((97.0, "holds"), (96.7, "holds"), (96.0, "not shown")):
        for method, middle in (("rigl", mean), ("snfs", 97.0)):
            seeds(tmp_path / str(mean), method, 0.9, mean=middle, spread=2.0)
        assert verdicts(tmp_path / str(mean))[claim] == (word, 1)
    for sparsity in (0.8, 0.9, 0.95, 0.98, 0.99, 0.5):
        for method, middle in (("rigl", 96.8), ("snfs", 97.0)):
            seeds(tmp_path / "below", method, sparsity, mean=middle, spread=2.0)
    assert verdicts(tmp_path / "below")[claim] == ("does not hold", 6), "a little below, and always"


def test_a_study_in_two_storages_counts_once(tmp_path: Path) -> None:
    for folder, storage in (("digits", "dense"), ("digits-compact", "compact")):
        open_study(tmp_path / folder, "digits", 3, scale="small", data="", storage=storage)
        seeds(tmp_path / folder, "rigl", 0.9, mean=97.0 + 0.01 * (storage == "compact"))
    assert "digits-compact" not in write_claims(tmp_path).read_text()


def test_a_pair_is_judged_by_welchs_test(tmp_path: Path) -> None:
    seeds(tmp_path, "rigl", 0.9, mean=97.0, spread=0.3)
    seeds(tmp_path, "set", 0.9, mean=96.5, spread=0.1)
    one, other = sorted(cells(tmp_path), key=lambda cell: cell.method)
    pair = Pair("", one, other)
    assert pair.error == pytest.approx((0.09 / 3 + 0.01 / 3) ** 0.5)
    assert pair.freedom == pytest.approx((0.1 / 3) ** 2 / ((0.03**2 + (0.01 / 3) ** 2) / 2))
    assert pair.difference / pair.error == pytest.approx(2.74, abs=0.01)
    assert pair.sign == 0  # two standard errors are not enough with 2.4 degrees of freedom
    assert [quantile(freedom) for freedom in (1, 2, 10, 30)] == pytest.approx([12.706, 4.303, 2.228, 2.042], abs=1e-3)
    assert quantile(3) < quantile(2.9) < quantile(2)  # Welch's are no whole numbers


def test_equal_flops_redistribution_and_tuning_find_their_pairs(tmp_path: Path) -> None:
    for name, sparsity, mean in (("uniform", 0.9, 96.0), ("erk", 0.94, 94.0), ("flop-aware", 0.89, 97.0)):
        seeds(tmp_path / "figure4", "rigl", sparsity, mean=mean, distribution=name, result={"test_ratio": 0.1})
    found = verdicts(tmp_path / "figure4")
    assert found["at fixed FLOPs uniform is above ERK"] == ("holds", 1)
    assert found["at fixed FLOPs the FLOP-aware distribution is above uniform (ours)"] == ("holds", 1)
    for start, mean in ((None, 97.0), ("rigl-sm", 95.0)):
        seeds(tmp_path / "table5", "rigl", 0.9, mean=mean, distribution="uniform", start=start)
    assert verdicts(tmp_path / "table5")["RigL started from RigL-SM's final masks is worse than RigL"] == ("holds", 1)
    for rate, mean in ((0.1, 97.0), (0.05, 97.1), (0.01, 93.0)):
        for alpha in (0.3, 0.5):
            seeds(tmp_path / "figure3", "rigl", 0.9, mean=mean, learning_rate=rate, drop_fraction=alpha)
    found = verdicts(tmp_path / "figure3", tmp_path / "figure4")
    assert found["learning rates .1 and .05 are no worse than the best of those tried"] == ("holds", 1)
    assert found["alpha = .3 with the reference dT is no worse than the best of those tried"] == ("holds", 1)


def test_the_page_has_every_claim_and_says_what_the_runs_are(tmp_path: Path) -> None:
    seeds(tmp_path, "rigl", 0.9, mean=97.0)
    seeds(tmp_path, "set", 0.9, mean=95.0)
    scales = {"digits": "scale small, lenet-300-100 on digits, 6 finished runs"}
    page = claims_page(CLAIMS, {"digits": cells(tmp_path)}, scales)
    for question, answers in [item for each in CLAIMS for item in each.items()]:
        assert all(text in page.split(f"## {question}\n")[1].split("\n## ")[0] for text in answers)
    assert [line[3:5] for line in page.splitlines() if line.startswith("## ")] == [
        "1.",
        "2.",
        "3.",
        "4.",
        "Be",
        "Ti",
        "Ho",
        "Wh",
    ]
    assert "(supplementary, Table 2, as printed) | **not tested** |" in page
    assert "| RigL is above SET | **holds** | 1 of 1 cells above beyond noise, 0 below, 0 within" in page
    assert "- digits: scale small, lenet-300-100 on digits, 6 finished runs" in page


def test_runs_of_an_older_version_and_a_newer_one_are_one_row(tmp_path: Path) -> None:
    store_run(tmp_path, "rigl", seed=0)
    old = store_run(tmp_path, "rigl", seed=1) / "config.json"
    fields = json.loads(old.read_text())
    for name in ("start", "rewind", "data_order", "timed", "dropout"):
        del fields[name]
    old.write_text(json.dumps(fields))
    (cell,) = cells(tmp_path)
    assert (cell.n, cell.label) == (2, "RigL (ERK)")


def test_figures_of_the_studies(tmp_path: Path) -> None:
    seeds(tmp_path, "dense", 0.0, mean=98.0)
    for level in (1, 5):
        for fields in ({}, {"rewind": 0.05}, {"start": "shuffled"}):
            seeds(tmp_path, "imp", imp_sparsity(level), mean=97.0 - level, **fields)
    for rewind in (0.0, 0.1):
        line = {"line": {"above_mean": 3.0 - 20 * rewind, "above_worst": 2.0 - 20 * rewind}}
        seeds(tmp_path, "dense", 0.0, mean=98.0, data_order=1, rewind=rewind, result=line)
    results, nothing = Results(read_runs(tmp_path)), Results([])
    figure = tickets.accuracy_over_density(results)
    assert figure is not None
    labels = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert labels == {"rewound to step 0", "rewound to 5 %", "masks shuffled", "Dense 98.0"}
    assert "Dense" in {cell.label for cell in cells(tmp_path)}  # not told apart by the runs of the instability
    figure = tickets.instability_figure(results)
    assert figure is not None
    rows = tickets.instability_table(results).rows
    assert rows == (
        ("dense", "0 %", "3", "3.00 ± 0.00", "2.00 ± 0.00"),
        ("dense", "10 %", "3", "1.00 ± 0.00", "0.00 ± 0.00"),
    )
    (container,) = figure.axes[0].containers
    assert container[0].get_ydata().tolist() == [3.0, 1.0]
    assert tickets.instability_figure(nothing) is tickets.accuracy_over_density(nothing) is None
    assert figure3.learning_rates(results) is figure4.accuracy_over_flops(results) is None


def test_bits_of_a_text_stand_in_a_figure(tmp_path: Path) -> None:
    text = {"model": "char-gru", "data": "tinyshakespeare"}
    for method, sparsity, found in (("dense", 0.0, 2.4), ("rigl", 0.75, 2.6)):
        for seed in range(2):
            store_run(tmp_path, method, sparsity, seed=seed, **text, result={"test_bits": found + 0.1 * seed})
    figure = charlm.bits(Results(read_runs(tmp_path)))
    assert figure is not None
    (axes,) = figure.axes
    assert "bits a character" in axes.get_ylabel()
    assert [line.get_ydata()[0] for line in axes.lines if line.get_marker() in "oh"] == pytest.approx([2.65, 2.45])


def test_storages_stand_in_a_figure_by_their_time(tmp_path: Path) -> None:
    seeds(tmp_path, "dense", 0.0, mean=98.0, precision="bf16", result={"seconds": 300.0})
    for precision in ("float32", "bf16"):
        for storage, seconds in (("dense", 290.0), ("compact", 60.0)):
            fields = {"precision": precision, "storage": storage, "result": {"seconds": seconds}}
            seeds(tmp_path, "rigl", 0.9, mean=97.0, **fields)
    figure = storages.accuracy_over_time(Results(read_runs(tmp_path)))
    assert figure is not None
    labels = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert labels == {f"RigL, {what}, {how}" for how in ("masked", "compact") for what in ("fp32", "bf16")}
    assert figure.axes[0].get_xlabel() == "minutes a run"
    (first, *_) = figure.axes[0].containers
    assert first[0].get_xdata().tolist() == [1.0]


def test_a_studys_report_has_its_comparison_and_its_figures(tmp_path: Path) -> None:
    open_study(tmp_path, "table2", 3, scale="small", data="")
    seeds(tmp_path, "rigl", 0.9, mean=97.0)
    text = report_folder(tmp_path)
    assert "lenet-300-100 on digits, beside Table 2 of the report" in text
    assert "of the 183 runs of this study are not finished: `regrow study table2 --seeds 3 --out" in text
    assert (tmp_path / "report" / "comparison.csv").read_text().startswith('Method,S,n,accuracy,paper,"FLOPs')
    assert "Slips in the report's text" in (tmp_path / "report" / "report.md").read_text()


def test_a_study_folder_is_of_one_scale_and_one_data_set(tmp_path: Path) -> None:
    open_study(tmp_path, "table2", 3, scale="small", data="")
    with pytest.raises(ValueError, match="holds this study with scale 'small', not 'paper'"):
        open_study(tmp_path, "table2", 3, scale="paper", data="")
    with pytest.raises(ValueError, match="holds this study with data '', not 'cifar10-jpeg'"):
        open_study(tmp_path, "table2", 3, scale="small", data="cifar10-jpeg")


@pytest.fixture
def two_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = [
        RunConfig(method=method, sparsity=0.8, epochs=1, seed=seed, every=5)
        for seed in range(2)
        for method in ("pruning", "lottery")
    ]

    def of_files(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
        raise ValueError("there is no such data")

    for name in list(STUDIES):
        monkeypatch.delitem(STUDIES, name)
    monkeypatch.setitem(STUDIES, "table2", made_study("table2", tiny))
    monkeypatch.setitem(STUDIES, "charlm", dataclasses.replace(made_study("charlm", ()), runs=of_files))


@pytest.mark.usefixtures("two_studies")
def test_study_all_does_what_it_can_and_says_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "all"
    assert main(["study", "all", "--out", str(out), "--workers", "1"]) == 1
    said = capsys.readouterr()
    assert "4 runs: 0 finished before, 4 now" in said.out
    assert said.err == "regrow: charlm is left out: there is no such data\n"
    page = (out / "claims.md").read_text()
    assert "- table2: scale small, lenet-300-100 on digits, 4 finished runs" in page
    (out / "claims.md").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "claims.md").read_text() == page
    assert "Lottery" in capsys.readouterr().out


@pytest.mark.usefixtures("two_studies")
def test_slips_of_the_new_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["study", "table2", "--data-dir", str(tmp_path / "nowhere"), *out]) == 2
    assert "nowhere is no folder: give the folder of all data with --data-dir" in capsys.readouterr().err
    assert main(["study", "table9", *out]) == 2
    assert "unknown study 'table9': choose one of table2, charlm, all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--data", "digits-images"], "digits-images"),
        (["--data-dir", "."], "cifar10-jpeg"),
        (["--data-dir", ".", "--data", "cifar10"], "cifar10"),
        (["--data-dir", ".", "--scale", "paper", "--yes"], None),
    ],
)
def test_the_data_of_a_study(
    arguments: list[str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fake(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
        asked.append((scale, data))
        return [RunConfig(epochs=1)]

    monkeypatch.setenv("REGROW_DATA", "elsewhere")
    monkeypatch.setitem(STUDIES, "table2", dataclasses.replace(table2.TABLE2, runs=fake))
    monkeypatch.setattr(Local, "launch", lambda *_, **__: Outcome())
    monkeypatch.setattr(study, "print_report", lambda _: None)
    assert main(["study", "table2", "--out", str(tmp_path / "out"), *arguments]) == 0
    assert asked == [("paper" if "paper" in arguments else "small", expected)]
    assert os.environ["REGROW_DATA"] == (str(Path.cwd()) if "--data-dir" in arguments else "elsewhere")


MY_STUDY = """
from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.report.claims import above
from regrow_lab.report.pairs import keys, versus
from regrow_lab.report.paper import ACCURACY, Net, printed
from regrow_lab.report.study_report import Picture, Results, StudyReport
from regrow_lab.studies import Study

TABLE = printed("Table 7", Net("lenet-300-100", "digits", (3e5, 1e5)), ACCURACY, (0.8,), "SET (ERK) | 12.3")


def runs(seeds, scale, data):
    methods = ("set", "rigl")
    return [RunConfig(method=each, sparsity=0.8, epochs=1, seed=seed) for seed in range(seeds) for each in methods]


def picture(results: Results):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([cell.mean for cell in results.cells])
    return figure


MINE = Study(
    name="mine",
    about="SET beside RigL",
    runs=runs,
    cost="two runs a seed, a second each",
    expected="RigL above SET",
    report=StudyReport(printed=(TABLE,), figures=(Picture("mine", "What I saw", picture),)),
    claims={"5. Mine?": {"RigL is above SET in mine": above(versus(keys("rigl", "erk"), keys("set", "erk")))}},
)
"""


def test_a_study_of_ones_own_is_a_record_in_any_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_studies.py").write_text(MY_STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["study", "my_studies:MINE", "--seeds", "2", "--workers", "1", "--out", "all/mine"]) == 0
    assert "4 runs: 0 finished before, 4 now" in capsys.readouterr().out
    report = Path("all/mine/report")
    table = (report / "comparison.md").read_text()
    assert "beside Table 7 of the report" in table
    assert any("SET (ERK)" in line and "12.3" in line for line in table.splitlines())
    assert (report / "mine.png").read_bytes().startswith(b"\x89PNG")
    assert "![What I saw](mine.png)" in (report / "report.md").read_text()
    assert main(["report", "all"]) == 0
    page = Path("all/claims.md").read_text()
    assert "## 5. Mine?" in page
    assert "| RigL is above SET in mine | **" in page
    assert main(["study", "my_studies:runs", "--out", "new"]) == 2
    assert "my_studies:runs is a function, expected a regrow_lab.studies.Study" in capsys.readouterr().err
    assert main(["study", "my_studies:YOURS", "--out", "new"]) == 2
    assert main(["study", "no_such_module:MINE", "--out", "new"]) == 2
    said = capsys.readouterr().err
    assert "my_studies:YOURS cannot be imported, as " in said
    assert "no_such_module:MINE cannot be imported, as there is no module no_such_module in " in said
    assert said.count("\n") == 2
    assert not Path("new").exists()
    del sys.modules["my_studies"]
    Path("my_studies.py").unlink()
    assert main(["report", "all/mine"]) == 0
    said = capsys.readouterr().out
    command = "regrow study my_studies:MINE --seeds 2 --out all/mine"
    assert f"`{command}` adds the tables and figures that my_studies:MINE has of its own." in said
