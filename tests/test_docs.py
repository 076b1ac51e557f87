"""The Python in the docs runs, one block after another; a session shows what it prints."""

import doctest
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import regrow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE, OWN = DOCS / "methods.md", DOCS / "own.md"


def test_the_methods_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"__name__": "methods"}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert len(list((tmp_path / "tickets").iterdir())) == 5
    assert names["line"].above_mean >= names["line"].above_worst >= 0  # type: ignore[attr-defined]


def test_the_page_on_ones_own_runs_as_it_is_written(tmp_path: Path) -> None:
    page = OWN.read_text()
    for name, block in re.findall(r"`(mine/\w+\.py)`.*?\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(block)
    said = []
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for command in block.splitlines():
            words = [str(Path(sys.executable).with_name("regrow")), *command.split()[1:]]
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), command
            said.append(done.stdout)
    train, study, report, flops = said
    accuracy = re.search(r"test accuracy\s+(\d+\.\d+)", train)
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    assert "13 runs: 0 finished before, 13 now" in study
    assert "mine.method:recipe" in report
    assert "mine.model:build, mine.method:recipe" in flops


def test_the_questions_of_the_results_page_have_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(
        str(ROOT / "docs" / "results.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert (failed, tried) == (0, 12)


def test_each_namespace_has_a_page_of_reference() -> None:
    namespaces = {name for name in regrow.__all__ if isinstance(getattr(regrow, name), ModuleType)}
    assert namespaces <= {page.stem for page in (DOCS / "reference").glob("*.md")}
