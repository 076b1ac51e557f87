"""The report of a search: Table 4 and the picture of the trials."""

import csv
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from stored import store_run

from regrow_lab.commands.cli import main
from regrow_lab.commands.tune.search_report import Trial, Trials, picture, searches, table_4, write_tuning_report
from regrow_lab.report import plain_tables
from regrow_lab.store import folders, whole_files

RESULTS = Path(__file__).parents[2] / "results" / "tune-digits"


def store_search(out: Path, scores: dict[tuple[float, int], float]) -> None:
    for (alpha, every), score in scores.items():
        for seed in range(3):
            result = {"validation_accuracy": score + seed, "validation_loss": 0.1}
            settings = {"drop_fraction": alpha, "every": every, "validation": 130}
            store_run(out, "rigl", 0.9, score - 1 + seed, seed, "erk", result, **settings)
    whole_files.write_json(
        out / "study.json", {"study": "tune-digits", "seeds": 3, "reference": {"alpha": 0.3, "every": 20}}
    )


def test_the_stored_search_gives_the_stored_table() -> None:
    table = table_4(searches(folders.read_runs(RESULTS), 0.3, 20), "lenet-300-100 on digits")
    assert plain_tables.to_markdown(table) in (RESULTS / "report" / "report.md").read_text()


def test_the_command_writes_table_4_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    store_search(out, {(0.3, 20): 90.0, (0.1, 10): 88.0, (0.6, 40): 95.0, (0.2, 200): 91.0, (0.5, 100): 93.0})
    store_run(out, "rigl", 0.9, 99.0, 0, "erk", {"validation_accuracy": 99.9}, drop_fraction=0.4, validation=130)
    assert main(["report", str(out)]) == 0
    assert "Given up, or not finished: 1 point." in capsys.readouterr().out
    [row] = csv.DictReader((out / "report" / "table4.csv").read_text().splitlines())
    assert (row["Method"], row["trials"], row["reference"]) == ("RigL (ERK)", "5", "90.0 ± 1.00")
    assert (row["alpha"], row["dT"], row["tuned"], row["gain"]) == ("0.600", "40", "95.0 ± 1.00", "+5.0")
    assert row["paper: tuned (alpha, dT)"] == "92.4 ± 0.23 (0.416, 200)"
    for file in ("trials.png", "trials.pdf", "report.md", "table4.md"):
        assert (out / "report" / file).stat().st_size > 500


def test_a_picture_has_one_scale_and_a_mark_for_every_trial() -> None:
    reference = Trial(0.3, 20, (97.0,), (90.0,))
    diverged, best = Trial(0.6, 10, (0.0,), (0.0,)), Trial(0.5, 40, (98.0,), (91.0,))
    others = [Trial(0.1 + number / 100, 30, (96.0 + number / 10,), (90.0,)) for number in range(9)]
    figure = picture(
        {
            ("uniform", 0.9): Trials((reference, diverged, best, *others), reference),
            ("erk", 0.5): Trials((reference,), reference),
        }
    )
    drawn = [mark for axes in figure.axes for mark in axes.collections if len(mark.get_offsets())]
    assert len({mark.get_clim() for mark in drawn if mark.get_array() is not None}) == 1
    low, high = drawn[0].get_clim()
    assert 90 < low < 96, "one that diverged does not leave a single colour to all others"
    assert high == 98
    assert [axes.get_visible() for axes in figure.axes[:4]] == [True, False, False, True]
    places = [
        tuple(place)
        for axes in figure.axes[:4]
        if axes.get_visible()
        for mark in axes.collections
        for place in mark.get_offsets()
    ]
    assert len(set(places)) == 12


@pytest.mark.parametrize(
    ("tried", "best"),
    [
        ([(0.3, 200), (0.3, 20)], (0.3, 20)),
        ([(0.2, 20), (0.3, 10), (0.3, 60)], (0.3, 10)),
        ([(0.3, 40), (0.31, 20)], (0.3, 40)),
    ],
    ids=["the reference itself", "dT by its ratio", "alpha before dT"],
)
def test_of_equals_the_one_nearest_to_the_reference_is_the_best(
    tried: list[tuple[float, int]], best: tuple[float, int]
) -> None:
    trials = tuple(Trial(alpha, every, (97.0,), (90.0,)) for alpha, every in tried)
    found = Trials(trials, Trial(0.3, 20, (97.0,), (90.0,))).best
    assert (found.alpha, found.every) == best


@pytest.mark.parametrize("reference", [{}, {"reference": 3}, {"reference": {"alpha": "x", "every": 20}}])
def test_a_search_without_its_reference_is_one_line(
    reference: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_run(tmp_path, validation=130)
    whole_files.write_json(tmp_path / "study.json", {"study": "tune-digits", "seeds": 1, **reference})
    assert main(["report", str(tmp_path)]) == 2
    assert "study.json does not say the reference (alpha, dT) of the search: give" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("width", [20, 40, 80, 100, 200])
def test_the_table_is_never_wider_than_the_terminal(width: int, tmp_path: Path) -> None:
    store_search(tmp_path, {(0.3, 20): 90.0, (0.1, 10): 88.0})
    said = write_tuning_report(tmp_path, width)
    table = said.split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= width
    assert ("paper: tuned" in table) == (width == 200)
    assert ("No room for" in said) == (width < 200)
    if width == 80:
        assert "gain val." in table
        assert all(len(line) <= 80 for line in said.splitlines() if " " in line)


def test_the_command_asks_the_terminal_for_its_width(tmp_path: Path) -> None:
    store_search(tmp_path, {(0.3, 20): 90.0})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "regrow_lab", "report", str(tmp_path)]
    subprocess.run(command, stdout=theirs, env=environment, check=True)
    os.close(theirs)
    said = os.read(ours, 100_000).decode().splitlines()
    os.close(ours)
    assert any(line.startswith("RigL (ERK)") for line in said)
    assert all(len(line) <= 80 for line in said if str(tmp_path) not in line)
