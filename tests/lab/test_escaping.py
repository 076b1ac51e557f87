"""Names and data from files say what they are, wherever they are shown; none of it is obeyed."""

import csv
import html
import io
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from stored import store_run

from regrow_files import shown
from regrow_lab.commands.cli import main
from regrow_lab.config import RunConfig, data_name
from regrow_lab.launch.progress import PlainProgress
from regrow_lab.report.plain_tables import Grid, to_csv, to_markdown
from regrow_lab.store import whole_files
from regrow_lab.store.escaping import file_name, in_csv, in_markdown, one_line
from regrow_lab.studies.reports import report_folder, write_claims

PAGE = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
OBEYED = [*"\\`*_<>[]()|~&#!;:/.\x1b\n\u202e", "&lt;", "www."]
SPECIAL = st.text(st.one_of(st.sampled_from("".join(OBEYED)), st.characters()))
HOSTILE = (
    "$x$ <img src=x onerror=alert(1)> [x](javascript:alert(1)) `a` **b** a|b &lt; $\\frac$ ~~c~~ https://evil.example"
)


@given(SPECIAL)
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    found = html.unescape(PAGE.renderInline(f"x{in_markdown(text)}x"))
    assert found == f"x{shown(text)}x"


@given(st.lists(SPECIAL, min_size=2, max_size=4))
def test_no_text_leaves_its_cell(texts: list[str]) -> None:
    page = PAGE.render(to_markdown(Grid("title", ("head",) * len(texts), (tuple(texts),))))
    assert [len(re.findall(f"<{tag}[ >]", page)) for tag in ("tr", "th", "td")] == [2, len(texts), len(texts)]


@given(SPECIAL, SPECIAL)
def test_names_of_files_stay_in_their_folder_and_apart(one: str, other: str) -> None:
    one, other = shown(one), shown(other)
    assert "/" not in file_name(one)
    assert len(file_name(one * 100)) < 150
    assert (file_name(one) == file_name(other)) == (one == other)


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-x", "\t=1"])
def test_a_spreadsheet_calculates_nothing(text: str) -> None:
    assert in_csv(text) == f"'{text}"
    [_, [cell]] = csv.reader(io.StringIO(to_csv(Grid("", ("head",), ((text,),)))))
    assert cell == f"'{text}"
    assert in_csv("-0.3") == "-0.3"
    assert in_csv("+1.2 ± 0.3") == "+1.2 ± 0.3"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of runs all of whose free text is hostile."""
    for seed, model in enumerate((HOSTILE, "=1+1\x1b]0;x\x07", "x" * 4000)):
        layers = {"<b>fc$x$</b>\x1b[2J": 0.1, "$\\frac{$": 0.1}
        told = {"machine": f"{HOSTILE}\x1b[31m\u202e", "torch": "<script>\n# head", "densities": layers}
        folder = store_run(tmp_path, seed=seed, model="x", result=told)
        fields = whole_files.read_json(folder / "config.json") | {"model": model, "data": "../../../out"}
        whole_files.write_json(folder / "config.json", fields)
    return tmp_path


def test_a_report_of_hostile_names(hostile: Path) -> None:
    outside = set(hostile.rglob("*")) | set(hostile.parent.glob("*"))
    text = report_folder(hostile, Console(file=io.StringIO(), force_terminal=False, width=120))
    made = {path for path in hostile.rglob("*") if path.is_file()} - outside
    assert {path.parent for path in made} == {hostile / "report"}
    assert set(hostile.parent.glob("*")) <= outside
    assert all(line.isprintable() for line in text.splitlines())
    for path in made:
        if path.suffix in (".md", ".csv", ".tex"):
            assert all(line.isprintable() for line in path.read_text().split("\n")), path
    for path in made:
        if path.suffix == ".md":
            page = PAGE.render(path.read_text())
            for tag in ("<script", "<img src=x", "<b>", "<s>", 'javascript:alert(1)"'):
                assert tag not in page, path
    figures = {path.name for path in made if path.suffix == ".png"}
    assert any(name.startswith("accuracy_sparsity-") for name in figures)
    page = (hostile / "report" / "report.md").read_text()
    assert all(f"({quote(name)})" in page for name in figures if name.startswith("acc"))


def test_claims_of_hostile_names(hostile: Path, tmp_path: Path) -> None:
    study = tmp_path / "studies" / "<b>x\x1b[2J"
    study.mkdir(parents=True)
    (hostile / "runs").rename(study / "runs")
    (study / "study.json").write_text(json.dumps({"schema": 1, "study": "x", "seeds": 1, "scale": "<script>\x1b[2J"}))
    page = write_claims(tmp_path / "studies").read_text()
    assert all(line.isprintable() for line in page.split("\n"))
    assert "<script" not in PAGE.render(page)
    assert "<b>" not in PAGE.render(page)


def test_what_goes_wrong_is_said_in_a_line_that_a_terminal_does_not_obey(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tmp_path / "a\x1b[31mb\nc\udcff"
    assert main(["report", str(name)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("regrow: ")
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    console = Console(file=io.StringIO(), force_terminal=True)
    PlainProgress(console).note("x\x1b[2J [bold]y[/] [/z]")
    assert console.file.getvalue() == "x\\x1b[2J [bold]y[/] [/z]\n"
    assert one_line("a\n b\x07") == r"a b\x07"


def test_a_folder_whose_name_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[/red]"
    assert main(["train", "--epochs", "1", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("birds/", "birds"),
        ("./birds", "birds"),
        ("a//b/./c", "a/b/c"),
        ("x/../x/y", "x/y"),
        ("x/y/../../z", "z"),
        ("digits/", "digits"),
        ("texts/./mine.txt", "texts/mine.txt"),
        ("größer × 測試", "größer × 測試"),
        ("x/../../y", "../y"),
        ("/x/../y/", "/y"),
        ("//x", "/x"),
    ],
)
def test_a_data_set_has_one_name_and_its_runs_one_folder(given_name: str, expected: str) -> None:
    assert data_name(given_name) == expected
    assert RunConfig(data=given_name) == RunConfig(data=expected)
    assert RunConfig(data=given_name).run_id == RunConfig(data=expected).run_id


@pytest.mark.parametrize("name", ["", "a\x1b[31mb", "a\nb", "a\0", "a\u202eb"])
def test_a_name_that_cannot_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"is no name of a data set: give that of a set or folder, or package"):
        RunConfig(data=name)
    assert main(["train", "--data", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "a/b"]), min_size=1, max_size=6).map("/".join))
def test_names_are_normal_once_they_are(name: str) -> None:
    found = data_name(name or ".")
    assert data_name(found) == found
    assert ".." not in found.removeprefix("/").removeprefix("../" * found.count("../")).split("/") or found.endswith(
        ".."
    )
