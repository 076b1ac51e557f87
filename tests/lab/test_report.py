"""The report is made from the stored runs alone, whole or not at all, and refuses what it cannot read."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from stored import store_run, store_study

from regrow_lab.report import folder_report
from regrow_lab.report.folder_report import write_report
from regrow_lab.store import folders
from regrow_lab.studies.reports import report_folder

FILES = {"table.md", "table.tex", "table.csv", "report.md"} | {
    f"{figure}.{kind}"
    for figure in ("accuracy_sparsity", "accuracy_flops", "layer_densities")
    for kind in ("png", "pdf")
}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "report").iterdir()}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study's folder with its report, and the text that was returned."""
    directory = tmp_path_factory.mktemp("study")
    store_study(directory)
    return directory, write_report(directory)


def test_every_file_is_written_and_the_table_returned(study: tuple[Path, str]) -> None:
    directory, text = study
    files = contents(directory)
    assert files.keys() == FILES
    assert all(files[name].startswith(b"\x89PNG\r\n") for name in FILES if name.endswith("png"))
    assert all(files[name].startswith(b"%PDF") for name in FILES if name.endswith("pdf"))
    assert "RigL_2x (ERK)" in text
    assert "\x1b" not in text  # the output of a test is no terminal
    page = files["report.md"].decode()
    assert files["table.md"].decode().split("\n\n", 1)[1] in page
    assert "69 runs, 1 of them diverged" in page
    assert "learning_rate 0.1" in page
    assert "method" not in page.split("the same in every run")[1]
    for name in ("accuracy_sparsity", "accuracy_flops", "layer_densities"):
        assert f"]({name}.png)" in page


def test_the_same_runs_give_the_same_bytes_and_other_files_stay(study: tuple[Path, str], tmp_path: Path) -> None:
    copy = shutil.copytree(study[0], tmp_path / "moved")
    before = contents(copy)
    for name in FILES:
        (copy / "report" / name).write_text("old")
    (copy / "report" / "notes.txt").write_text("mine")
    write_report(str(copy))
    assert contents(copy) == before | {"notes.txt": b"mine"}


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_run(tmp_path)
    write_report(tmp_path)
    before = contents(tmp_path)
    store_run(tmp_path, "set")

    def out_of_memory(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(folder_report, "_image", out_of_memory)
    with pytest.raises(MemoryError):
        write_report(tmp_path)
    assert contents(tmp_path) == before


def test_a_terminal_gets_bold_type_and_its_own_width(tmp_path: Path) -> None:
    store_run(tmp_path, sparsity=0.9)
    store_run(tmp_path, sparsity=0.95)
    text = write_report(tmp_path, Console(file=io.StringIO(), force_terminal=True, width=46))
    assert "\x1b[1m" in text
    assert sum(line.startswith("Method") for line in text.splitlines()) == 3  # block below block, the costs last


def test_a_dense_run_alone_has_a_table_and_no_figures(tmp_path: Path) -> None:
    store_run(tmp_path, "dense", 0.0, 98.0)
    assert "Dense" in write_report(tmp_path)
    assert contents(tmp_path).keys() == {"table.md", "table.tex", "table.csv", "report.md"}


def test_several_data_sets_have_figures_of_their_own(tmp_path: Path) -> None:
    store_run(tmp_path)
    store_run(tmp_path, model="wrn-22-2", data="cifar10")
    write_report(tmp_path)
    assert "accuracy_flops-wrn-22-2-cifar10.png" in contents(tmp_path)


def test_a_study_that_is_not_finished_says_so(tmp_path: Path) -> None:
    folders.open_study(tmp_path, "digits", 1)
    store_run(tmp_path, "dense", 0.0, 98.0)
    assert "68 of the 69 runs of this study are not finished: `regrow study digits --seeds 1" in report_folder(tmp_path)


def test_what_is_no_folder_of_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no runs"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="holds no runs"):
        write_report(tmp_path / "nowhere")
    (store_run(tmp_path) / "result.json").unlink()
    with pytest.raises(ValueError, match=r"holds no finished run \(1 begun\)"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_torch_is_not_imported() -> None:
    code = "import sys, regrow_lab.studies.reports; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_figures_are_left_out_where_nobody_could_tell_their_lines_apart(tmp_path: Path) -> None:
    for number in range(61):
        store_run(tmp_path, "set", 0.9, 97.0, 0, "erk", drop_fraction=(number + 1) / 100)
    text = write_report(tmp_path)
    assert "61 rows are too many for figures of up to 60 lines: those are left out." in text
    assert not list((tmp_path / "report").glob("*.png"))
    assert (tmp_path / "report" / "table.md").exists()
