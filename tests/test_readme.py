"""The README is true and short: its Python runs, its commands exist, its links lead on; so is the map of the tree."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from regrow_lab.commands import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = ("console", "sh", "bash", "shell")
CHEAP = ("flops",)
"""Commands of `regrow` that are run, not only parsed."""


def commands() -> list[tuple[str, str]]:
    """Each command in the shell blocks, and the output that is shown below it (where the block has prompts)."""
    found: list[tuple[str, str]] = []
    for language, block in BLOCKS:
        if language not in SHELL:
            continue
        prompts = "$ " in block
        for line in block.splitlines(keepends=True):
            if line.startswith("$ ") or (not prompts and line.strip() and not line.startswith("#")):
                found.append((line.removeprefix("$ ").strip(), ""))
            elif prompts and found:
                found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def test_there_is_something_to_check() -> None:
    assert {language for language, _ in BLOCKS} <= {"python", "text", "", *SHELL}
    assert any(language == "python" for language, _ in BLOCKS)
    assert {"make study", "make test"} <= {shlex.join(shlex.split(command, comments=True)) for command, _ in commands()}


def test_it_is_read_in_three_minutes() -> None:
    assert len(README.split()) < 900
    tables = [line for line in README.splitlines() if line.startswith("|")]
    assert max(map(len, tables)) <= 100


def test_python_blocks_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize(("command", "output"), commands())
def test_commands_exist(
    command: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(command, comments=True)
    monkeypatch.chdir(tmp_path)
    if program == "make":
        dry = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert dry.returncode == 0, dry.stderr
    elif program == "regrow" and arguments[0] in CHEAP:
        assert cli.main(arguments) == 0
        if output.strip():
            assert capsys.readouterr().out.split() == output.split()
    elif program == "regrow":
        cli._parse(arguments)  # refuses what the command line does not know
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    elif program == "pip":
        extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
        assert set(",".join(re.findall(r"\[([\w,]+)\]", command)).split(",")) - {""} <= extras
    else:
        assert program in ("git", "cd"), f"no check for {program!r}: add one"


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith(("http://", "https://"))]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_map_of_the_tree_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = next(
        block for block in re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if "src/" in block
    )
    homes = (
        ROOT,
        ROOT / "src/regrow",
        ROOT / "src/regrow/engine",
        ROOT / "src/regrow_lab",
        ROOT / "tests",
        ROOT / "docs",
        ROOT / "results",
    )
    names = re.findall(r"[\w/]+(?:\.py|\.md|/(?=\s))", block)
    assert len(names) > 20
    for name in names:
        assert any((home / name).exists() for home in homes), f"{name} is in the map and not in the tree"
