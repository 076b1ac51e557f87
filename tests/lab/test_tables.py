"""Stored runs -> summaries -> the table: the numbers are right, and nothing is averaged away."""

import csv
import io
import re
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from stored import store_run, store_study

from regrow_lab.report import plain_tables
from regrow_lab.report.columns import aligned
from regrow_lab.report.comparison import comparisons
from regrow_lab.report.renderings import to_csv, to_latex, to_markdown, to_text
from regrow_lab.report.summary import GROUPS, Summary, summarise
from regrow_lab.report.tables import Cell, Table, best_of_groups, make_tables
from regrow_lab.report.words import variant_in_words
from regrow_lab.store.folders import read_runs


@pytest.fixture
def study(tmp_path: Path) -> tuple[Summary, ...]:
    store_study(tmp_path)
    return summarise(read_runs(tmp_path))


def table_of(directory: Path) -> Table:
    (table,) = make_tables(summarise(read_runs(directory)))
    return table


def cells(table: Table) -> dict[str, tuple[Cell, ...]]:
    return {row.label: row.cells for group in table.groups for row in group}


def test_mean_and_sample_deviation_over_seeds(tmp_path: Path) -> None:
    accuracies = (96.0, 97.0, 98.6)
    for seed, accuracy in enumerate(accuracies):
        store_run(tmp_path, accuracy=accuracy, seed=seed, result={"seconds": seed + 1.0, "train_ratio": 0.1 * seed})
    (cell,) = summarise(read_runs(tmp_path))
    assert (cell.n, cell.diverged) == (3, 0)
    assert cell.mean == pytest.approx(sum(accuracies) / 3)
    assert cell.std == pytest.approx(statistics.stdev(accuracies))  # over n - 1, not n
    assert (cell.median, cell.min, cell.max) == (97.0, 96.0, 98.6)
    assert (cell.seconds, cell.peak_memory_mib) == (2.0, 200.0)
    assert cell.train_ratio == pytest.approx(0.1)
    assert cell.density == pytest.approx(0.1)


def test_a_diverged_seed_is_marked_and_in_no_mean(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((91.0, None, 91.4)):
        store_run(tmp_path, accuracy=accuracy, seed=seed)
    (cell,) = summarise(read_runs(tmp_path))
    assert (cell.n, cell.diverged) == (2, 1)
    assert cell.mean == pytest.approx(91.2)
    assert cells(table_of(tmp_path))["RigL (ERK)"][0].accuracy.split() == [
        "91.2",
        "±",
        "0.28",
        "(2/3;",
        "1",
        "diverged)",
    ]
    assert any("did not diverge" in note for note in table_of(tmp_path).notes)


def test_a_setting_whose_seeds_all_diverged_has_a_cost_but_no_accuracy(tmp_path: Path) -> None:
    for seed in range(2):
        store_run(tmp_path, accuracy=None, seed=seed)
    (cell,) = summarise(read_runs(tmp_path))
    assert (cell.n, cell.diverged, cell.mean, cell.std, cell.min) == (0, 2, None, None, None)
    assert cells(table_of(tmp_path))["RigL (ERK)"][0] == Cell("diverged (0/2)", "0.100", "0.10x, 0.10x", best=False)


def test_a_single_seed_has_no_deviation_and_fewer_seeds_say_so(tmp_path: Path) -> None:
    store_run(tmp_path, "snip", accuracy=96.0)
    for seed in range(3):
        store_run(tmp_path, "pruning", accuracy=97.0, seed=seed)
    shown = cells(table_of(tmp_path))
    assert shown["SNIP"][0].accuracy.strip() == "96.0 (n = 1)"
    assert shown["Pruning"][0].accuracy.split() == ["97.0", "±", "0.00"]


def test_runs_under_way_are_left_out(tmp_path: Path) -> None:
    store_run(tmp_path)
    (store_run(tmp_path, seed=1, accuracy=50.0) / "result.json").unlink()
    (cell,) = summarise(read_runs(tmp_path))
    assert (cell.n, cell.mean) == (1, 97.0)


def test_settings_that_differ_in_more_than_the_seed_are_never_averaged(tmp_path: Path) -> None:
    store_run(tmp_path, accuracy=96.0, every=20)
    store_run(tmp_path, accuracy=90.0, every=50)
    assert {label: row[0].accuracy.strip() for label, row in cells(table_of(tmp_path)).items()} == {
        "RigL (ERK, dT 20)": "96.0",
        "RigL (ERK, dT 50)": "90.0",
    }


def test_a_result_without_a_field_is_refused_by_name(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace('"train_ratio"', '"something"'))
    with pytest.raises(ValueError, match=r"result\.json has no field 'train_ratio'"):
        summarise(read_runs(tmp_path))


def test_rows_have_the_labels_and_the_order_of_the_report(study: tuple[Summary, ...]) -> None:
    (table,) = make_tables(study)
    assert [[row.label for row in group] for group in table.groups] == [
        ["Small Dense", "SET", "RigL"],
        ["SNIP", "SET (ERK)", "RigL (ERK)"],
        ["RigL_2x", "RigL_2x (ERK)", "SNFS", "SNFS (ERK)", "Pruning"],
        ["Dense"],
    ]
    assert table.sparsities == (0.9, 0.99)
    assert len(table.groups) == len(GROUPS)


def test_what_an_earlier_run_or_many_passes_cost_is_in_no_group_of_the_cheap(tmp_path: Path) -> None:
    """Whether or not the row says so: a folder may hold nothing else."""
    store_run(tmp_path, "rigl", accuracy=96.0, distribution="uniform")
    store_run(tmp_path, "obd", accuracy=99.0, result={"train_ratio": 0.58})
    store_run(tmp_path, "grasp", accuracy=97.0)
    for distribution in ("uniform", "erk"):
        for start in ("rigl-sm", "rigl-sm-densities"):
            store_run(tmp_path, "rigl", accuracy=98.0, distribution=distribution, start=start)
    table = table_of(tmp_path)
    best = [[row.label for row in group if row.cells[0].best] for group in table.groups]
    assert best == [["RigL"], ["GraSP"], ["OBD"]]
    assert [len(group) for group in table.groups] == [1, 1, 5]
    store_run(tmp_path / "alone", "rigl", accuracy=98.0, start="rigl-sm")
    (cell,) = summarise(read_runs(tmp_path / "alone"))
    assert (cell.label, cell.group) == ("RigL (ERK)", 2)


def test_what_differs_in_late_digits_can_be_told_apart(tmp_path: Path) -> None:
    for sparsity in (0.9, 0.9000001, 0.99999):
        density = 1 - sparsity
        store_run(tmp_path, "static", sparsity, result={"train_ratio": density, "test_ratio": density / 10})
    table = table_of(tmp_path)
    assert table.heads == ("0.9", "0.9000001", "0.99999")
    assert cells(table)["Static (ERK)"][2].flops == "1e-05x, 1e-06x"
    for text in (to_text(table), to_markdown(table), to_latex(table)):
        assert len(set(re.findall(r"S = ([\d.]+)", text))) == 3


def test_a_fractional_multiple_is_set_as_one(tmp_path: Path) -> None:
    store_run(tmp_path, multiplier=2.97)
    assert r"RigL$_{2.97\times}$ (ERK)" in to_latex(table_of(tmp_path))


def test_best_of_each_group_at_each_sparsity(study: tuple[Summary, ...]) -> None:
    (table,) = make_tables(study)
    assert [[row.label for row in group if row.cells[0].best] for group in table.groups] == [
        ["RigL"],
        ["RigL (ERK)"],
        ["RigL_2x (ERK)"],
        ["Dense"],
    ]


def test_what_is_shown_equal_is_equally_best(tmp_path: Path) -> None:
    store_run(tmp_path, "set", accuracy=97.01)
    store_run(tmp_path, "rigl", accuracy=97.04)
    store_run(tmp_path, "static", accuracy=96.9)
    assert [cell.label for cell in best_of_groups(summarise(read_runs(tmp_path)))] == ["SET (ERK)", "RigL (ERK)"]


def test_a_cell_with_a_diverged_seed_is_never_the_best(tmp_path: Path) -> None:
    store_run(tmp_path, "set", accuracy=99.0)
    store_run(tmp_path, "set", accuracy=None, seed=1)
    store_run(tmp_path, "rigl", accuracy=90.0)
    assert [cell.label for cell in best_of_groups(summarise(read_runs(tmp_path)))] == ["RigL (ERK)"]


def test_flops_are_ratios_except_for_the_dense_net(study: tuple[Summary, ...]) -> None:
    (table,) = make_tables(study)
    assert [cell.flops for cell in cells(table)["RigL_2x"]] == ["0.20x, 0.10x", "0.020x, 0.010x"]
    assert [cell.flops for cell in cells(table)["Dense"]] == ["3.01e5, 1.00e5", "–"]


def test_absolute_flops_of_a_large_net(tmp_path: Path) -> None:
    store_run(tmp_path, "dense", 0.0, result={"dense_flops": 8_178_000_000})
    assert cells(table_of(tmp_path))["Dense"][0].flops == "2.45e10, 8.18e9"


def test_missing_cells_are_dashes(tmp_path: Path) -> None:
    store_run(tmp_path, "set", sparsity=0.9)
    store_run(tmp_path, "rigl", sparsity=0.95)
    table = table_of(tmp_path)
    assert cells(table)["SET (ERK)"][1] == cells(table)["RigL (ERK)"][0] == Cell("–", "–", "–")
    assert re.search(r"\| SET \(ERK\) .*(\| – +){3}\| [\d.]+ +\| [\d,]+ +\|$", to_markdown(table), re.MULTILINE)
    assert re.search(r"^SET \(ERK\) .* & -- & -- & -- & [\d.]+ & [\d,]+ \\\\$", to_latex(table), re.MULTILINE)
    assert re.search(r"^SET \(ERK\) .* – +– +– +[\d.]+ +[\d,]+$", to_text(table), re.MULTILINE)


def test_achieved_density_stands_in_every_cell(study: tuple[Summary, ...], tmp_path: Path) -> None:
    (table,) = make_tables(study)
    assert [cell.density for cell in cells(table)["Small Dense"]] == ["0.106", "0.0160"]
    assert [cell.density for cell in cells(table)["RigL"]] == ["0.100", "0.0100"]
    store_run(tmp_path, "static", result={"sparsity": 0.56})  # at S = .9, the first layer dense
    assert cells(table_of(tmp_path))["Static (ERK)"][0].density == "0.440"


def test_seeds_that_lie_far_apart_are_marked_with_median_and_range(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((81.6, 8.6, 90.6)):
        store_run(tmp_path, "rigl", accuracy=accuracy, seed=seed)
        store_run(tmp_path, "set", accuracy=81.0 + 5 * seed, seed=seed)
    table = table_of(tmp_path)
    assert cells(table)["RigL (ERK)"][0].accuracy.endswith("†")
    assert "†" not in cells(table)["SET (ERK)"][0].accuracy
    (note,) = [note for note in table.notes if note.startswith("†")]
    assert note == "† Seeds more than 10 points apart; median (lowest – highest): RigL (ERK) 81.6 (8.6 – 90.6) at 0.9."


def test_each_model_and_data_set_has_a_table(tmp_path: Path) -> None:
    store_run(tmp_path)
    store_run(tmp_path, model="wrn-22-2", data="cifar10")
    titles = [table.title for table in make_tables(summarise(read_runs(tmp_path)))]
    assert titles == ["lenet-300-100 on digits", "wrn-22-2 on cifar10"]


@pytest.mark.parametrize("width", [None, 80, 130])
def test_text_lines_up_and_fits(study: tuple[Summary, ...], width: int | None) -> None:
    (table,) = make_tables(study)
    lines = to_text(table, width).splitlines()
    assert all(len(line) <= (width or 150) for line in lines), max(lines, key=len)
    rows = [line for line in lines if line.startswith(("SET", "RigL", "SNFS", "Pruning"))]
    with_accuracy = [line for line in rows if "±" in line]
    assert len({line.index("±") for line in with_accuracy}) == 1
    assert len(with_accuracy) == 9 * (2 if width == 80 else 1)
    assert len({len(line) for line in rows if line not in with_accuracy}) <= 1  # the costs, below where they must be
    assert sum("seconds  peak MiB" in line for line in lines) == 1


@pytest.mark.parametrize("width", range(36, 120, 7))
def test_no_table_is_wider_than_the_terminal(study: tuple[Summary, ...], tmp_path: Path, width: int) -> None:
    """However long a label is; what there is no room for is set on lines of its own, or said to be elsewhere."""
    for rate in (0.005, 0.05):
        store_run(tmp_path / "tuned", "rigl", every=100, learning_rate=rate, drop_fraction=0.1 + rate, start="rigl-sm")
    tuned = summarise(read_runs(tmp_path / "tuned"))
    for cells_of_one in (study, tuned):
        (table,), (grid,) = make_tables(cells_of_one, ["A note of many words."]), comparisons(cells_of_one)
        text = to_text(table, width)
        assert max(map(len, text.splitlines())) <= width, text
        beside = plain_tables.to_text(grid, width, "comparison.md")
        assert max(map(len, beside.splitlines())) <= width, beside
        for row in (row for group in table.groups for row in group):
            texts = (text for cell in row.cells for text in (cell.accuracy, cell.density, cell.flops))
            assert all(each in text for each in (row.label[:6], *row.costs, *texts) if each != "–"), "nothing is cut"
    texts = plain_tables.to_text(comparisons(tuned)[0], width, "comparison.md").split("No room for ")
    assert ("peak MiB" in texts[0]) != ("peak MiB" in " ".join(texts[1:]))


@given(st.lists(st.one_of(st.none(), st.floats(1e-9, 1e6)), min_size=1, max_size=6))
def test_a_column_has_one_number_of_decimals(values: list[float | None]) -> None:
    texts = [text.removesuffix("x") for text in aligned(values, least=2, after="x")]
    plain = [text for text in texts if text != "–" and "e" not in text]
    assert len({len(text.partition(".")[2]) for text in plain}) <= 1
    for text, value in zip(texts, values, strict=True):
        assert (text == "–") == (value is None)
        if value is not None:
            assert float(text.replace(",", "")) == pytest.approx(value, rel=0.06, abs=5e-5)
            assert float(text.replace(",", "")) > 0, "what is there is never shown as nothing"


def test_short_times_are_in_seconds_and_long_ones_in_hours(tmp_path: Path) -> None:
    for folder, unit, seconds, said in (
        ("short", "seconds", (0.64, 1.1), ["0.64", "1.10"]),
        ("medium", "minutes", (30.0, 600.0), ["0.50", "10.00"]),
        ("long", "hours", (7200.0, 72000.0), ["2.0", "20.0"]),
    ):
        for method, took in zip(("set", "rigl"), seconds, strict=True):
            store_run(tmp_path / folder, method, result={"seconds": took})
        table = table_of(tmp_path / folder)
        assert table.costs == (unit, "peak MiB")
        assert [row.costs[0] for group in table.groups for row in group] == said


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("", ""),
        ("drop_fraction=0.3, every=20, learning_rate=0.005", "alpha 0.3, dT 20, learning rate 0.005"),
        ("precision=bf16, storage=compact", "bf16, compact"),
        ("rewind=0.02", "rewound to 2 %"),
        ("rewind=0.0, start=trained", "not rewound: trained on"),
        ("rewind=0.05, start=shuffled", "rewound to 5 %, masks shuffled"),
        ("compiled=False, image_size=64", "not compiled, image size 64"),
    ],
)
def test_rows_are_named_in_words(variant: str, said: str) -> None:
    assert variant_in_words(variant) == said


def test_text_marks_the_best_with_bold_on_a_terminal_and_a_star_elsewhere(study: tuple[Summary, ...]) -> None:
    (table,) = make_tables(study)
    plain, styled = to_text(table), to_text(table, styled=True)
    assert "\x1b" not in plain
    assert "*" not in styled
    bold = [span for span in Text.from_ansi(styled).spans if "bold" in str(span.style)]
    starred = re.findall(r"\d\*", plain)
    assert len(bold) == len(starred) + 1  # the title is bold too
    assert len(starred) == sum(cell.best for row in cells(table).values() for cell in row) == 7


def test_markdown_is_one_table_with_cells_for_every_column(study: tuple[Summary, ...]) -> None:
    (table,) = make_tables(study)
    rows = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert {len(row.split(" | ")) for row in rows} == {9}
    assert len({len(row) for row in rows}) == 1  # the source lines up
    assert "| **96.5 ± 0.20** " in next(row for row in rows if "RigL (ERK)" in row)


def test_latex_escapes_and_is_balanced(study: tuple[Summary, ...], tmp_path: Path) -> None:
    latex = to_latex(make_tables(study)[0])
    assert r"RigL$_{2\times}$ (ERK)" in latex
    assert r"\textbf{96.5 $\pm$ 0.20}" in latex
    assert latex.isascii()
    assert latex.count("{") == latex.count("}")
    body = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")]
    assert {line.count("&") for line in body.splitlines() if line.endswith(r"\\")} == {
        4,
        8,
    }  # the head spans columns
    store_run(tmp_path / "odd", model="a_b&c%d#e$f{g}~^\\")
    latex = to_latex(table_of(tmp_path / "odd"))
    assert r"\caption{a\_b\&c\%d\#e\$f\{g\}\textasciitilde{}\textasciicircum{}\textbackslash{} on digits." in latex


def test_csv_holds_every_number_in_full(study: tuple[Summary, ...]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(study))))
    assert len(rows) == len(study)
    for row, summary in zip(rows, study, strict=True):
        assert row.pop("label") == summary.label
        for field, text in row.items():
            value = getattr(summary, field)
            assert text == "" if value is None else type(value)(text) == value
    assert [row["diverged"] for row in rows if row["method"] == "set"] == ["0", "1", "0", "0"]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5), st.integers(0, 3))
def test_any_accuracies_make_a_table(accuracies: list[float], diverged: int) -> None:
    cell = Summary(
        model="m", data="d", method="set", distribution="uniform", multiplier=1, variant="", sparsity=0.9,
        n=len(accuracies), diverged=diverged, mean=statistics.fmean(accuracies),
        std=statistics.stdev(accuracies) if len(accuracies) > 1 else None, median=0, min=0, max=0, train_ratio=0.1,
        test_ratio=0.1, density=0.1, dense_flops=1e5, seconds=1, peak_memory_mib=None, layer_densities={},
    )  # fmt: skip
    ((row,),) = make_tables([cell])[0].groups
    assert row.cells[0].accuracy.startswith(f"{cell.mean:5.1f}")
    assert (f"{diverged} diverged" in row.cells[0].accuracy) == (diverged > 0)
