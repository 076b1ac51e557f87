"""One record is all that a method needs: runs, table, figures, report and command line know it from then on."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

import regrow_lab
from regrow_lab.commands.cli import main
from regrow_lab.config import RunConfig
from regrow_lab.methods import METHODS, SPARE, Method, imp_level, imp_sparsity, method_of
from regrow_lab.report.figures import accuracy_against_flops, accuracy_against_sparsity, layer_densities
from regrow_lab.report.summary import summarise
from regrow_lab.run.cost import account
from regrow_lab.run.resumable import train
from regrow_lab.store.folders import read_runs

RECIPE = '''
from dataclasses import replace

import regrow


def recipe(**arguments):
    """RigL that grows at random, which is SET in RigL's order of steps."""
    return replace(regrow.rigl(**arguments), name="blind", grow=regrow.scores.random)
'''

SHARED = ("summary.py", "figures.py", "tables.py", "accuracy_axis.py")
"""Of report/: what all studies are drawn and printed by."""


@pytest.fixture
def blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Method:
    """A method of a module that nothing else knows, added as its record is."""
    (tmp_path / "blind_module.py").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    record = Method(name="blind", label="Blind RigL", colour="#123456", marker="*", recipe="blind_module:recipe")
    monkeypatch.setitem(METHODS, "blind", record)
    return record


def test_a_record_is_all_that_a_new_method_needs(
    blind: Method, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    words = ["train", "--epochs", "1", "--every", "5", "--out", str(out)]
    for method, distribution in (("blind", "uniform"), ("blind", "erk"), ("rigl", "uniform"), ("rigl", "erk")):
        given = ["--method", method, "--sparsity", "0.9", "--distribution", distribution]
        assert main([*words, *given]) == 0
    assert main([*words, "--storage", "compact", "--method", "blind", "--sparsity", "0.95"]) == 0
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^│? *Blind RigL ", printed, re.MULTILINE), printed
    report = (out / "report" / "report.md").read_text()
    assert "Blind RigL (ERK" in report
    cells = summarise(read_runs(out))
    assert [cell.group for cell in cells if cell.method == "blind" and cell.distribution == "uniform"] == [0]
    for draw in (accuracy_against_sparsity, accuracy_against_flops):
        figure = draw(cells)
        assert figure is not None
        lines = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
        assert (lines["Blind RigL"].get_color(), lines["Blind RigL"].get_marker()) == ("#123456", "*")
    assert RunConfig(method="blind", sparsity=0.9).run_id.startswith("blind-erk-s0.9-seed0-")
    assert account(RunConfig(method="blind", sparsity=0.9), 1000)["test_ratio"] < 0.2


def test_what_a_record_says_is_heeded(blind: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(config: RunConfig) -> None:
        if config.optimizer == "adam":
            raise ValueError("blind cannot be combined with adam")

    def told(**changes: object) -> None:
        monkeypatch.setitem(METHODS, "blind", dataclasses.replace(blind, **changes))  # type: ignore[arg-type]

    told(storages=("dense",), takes_distribution=False, check=check)
    with pytest.raises(ValueError, match="method blind cannot run in compact storage: choose storage dense"):
        RunConfig(method="blind", sparsity=0.9, storage="compact")
    with pytest.raises(ValueError, match="method blind takes no distribution, given 'erk'"):
        RunConfig(method="blind", sparsity=0.9, distribution="erk")
    with pytest.raises(ValueError, match="cannot be combined with adam"):
        RunConfig(method="blind", sparsity=0.9, optimizer="adam")
    assert RunConfig(method="blind", sparsity=0.9).distribution is None
    told(finds_densities=True, sparse_throughout=False, label="Seeing")
    train(RunConfig(method="blind", sparsity=0.9, epochs=1), tmp_path)
    (cell,) = summarise(read_runs(tmp_path))
    assert (cell.group, cell.label) == (2, "Seeing (ERK)")
    figure = layer_densities([cell])
    assert figure is not None
    assert [line.get_color() for line in figure.axes[0].lines] == [blind.colour]
    told(prerequisite=lambda config: dataclasses.replace(config, method="static"), includes_prerequisite=True)
    needed = RunConfig(method="blind", sparsity=0.9).prerequisite
    assert needed is not None
    assert needed.method == "static"


def test_methods_are_told_apart_by_label_and_looks() -> None:
    for what in ("name", "label", "recipe"):
        values = [getattr(method, what) for method in METHODS.values() if not (what == "recipe" and method.given_masks)]
        values = [value for value in values if value is not None]
        assert len(set(values)) == len(values)
    looks = [(method.colour, method.marker) for method in METHODS.values()] + list(SPARE)
    assert len(set(looks)) == len(looks)
    assert len({colour for colour, _ in looks}) == len(looks)
    for name, method in METHODS.items():
        assert name == method.name


def test_nothing_else_names_the_methods_or_has_their_colours() -> None:
    """Studies choose the methods that they run, and what is printed or claimed of one; the rest knows none by name."""
    root = Path(regrow_lab.__file__).parent
    names = METHODS.keys() - {"dense"}  # a storage too
    colours = {method.colour for method in METHODS.values()}
    for file in root.rglob("*.py"):
        where = file.relative_to(root).as_posix()
        texts = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert where == "methods.py" or not texts & colours, where
        if where.startswith(("config.py", "run/", "models/", "data/", "store/", "launch/")) or file.name in SHARED:
            assert not texts & names, where


def test_the_stored_runs_keep_their_names() -> None:
    """What stands under results/ is found finished: every configuration there has the name of its folder."""
    results = Path(regrow_lab.__file__).parents[2] / "results"
    files = sorted(results.glob("*/runs/*/config.json"))
    for file in files:
        assert RunConfig.from_dict(without_schema(json.loads(file.read_text()))).run_id == file.parent.name


def without_schema(config: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in config.items() if name != "schema"}


def test_rounds_of_iterative_pruning_are_counted_both_ways() -> None:
    assert [imp_level(imp_sparsity(level)) for level in range(1, 30)] == list(range(1, 30))


def test_an_unknown_method_is_answered_with_all() -> None:
    with pytest.raises(
        ValueError, match=r"unknown method 'rigI': choose one of dense, .*, imp, or package.module:reci"
    ):
        method_of("rigI")
