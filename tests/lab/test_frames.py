"""Stored runs as pandas frames."""

import json
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from stored import store_run

from regrow_lab.config import RunConfig
from regrow_lab.store import epochs, folders, frame, schema, whole_files


def test_a_row_a_run_whatever_the_form(tmp_path: Path) -> None:
    for seed in range(2):
        folder = store_run(tmp_path, "rigl", 0.9, 96.0 + seed, seed, "erk", {"sparsity": 0.91})
        whole_files.write_lines(folder / "metrics.jsonl", [{"epoch": 1, "step": 1260, "train_loss": 0.5 + seed}])
    store_run(tmp_path, "dense", 0.0, None)
    (store_run(tmp_path, "snip", 0.9) / "result.json").unlink()
    runs, lines = frame(tmp_path), epochs(tmp_path)
    assert list(runs.columns[:2]) == ["study", "run"]
    assert set(runs.columns) == {"study", "run", "sparsity_reached", *schema.CONFIG, *schema.RESULT}
    assert set(runs.study) == {tmp_path.name}
    assert list(runs.method) == ["dense", "rigl", "rigl", "snip"]
    assert list(runs.test_accuracy.fillna(-1)) == [-1, 96, 97, -1]
    assert list(runs.status.fillna("")) == ["diverged", "finished", "finished", ""]
    assert list(runs.sparsity) == [0, 0.9, 0.9, 0.9]
    assert list(runs.sparsity_reached.fillna(-1)) == [0, 0.91, 0.91, -1]
    assert runs.densities[1] == dict.fromkeys(("fc1.weight", "fc2.weight", "fc3.weight"), 1 - 0.9)
    assert lines.drop(columns=["run", "study"]).to_dict("list") == {
        "epoch": [1, 1],
        "step": [1260, 1260],
        "train_loss": [0.5, 1.5],
    }
    folders.pack(tmp_path)
    pandas.testing.assert_frame_equal(frame(str(tmp_path)), runs)
    pandas.testing.assert_frame_equal(epochs(str(tmp_path)), lines)


def test_a_folder_of_studies_is_one_frame(tmp_path: Path) -> None:
    for name in ("b", "a"):
        store_run(tmp_path / name)
        folders.open_study(tmp_path / name, name, 1)
    folders.pack(tmp_path / "a")
    assert list(frame(tmp_path).study) == ["a", "b"]


def test_an_older_version_lacked_fields(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    config = whole_files.read_json(folder / "config.json")
    del config["dropout"]
    whole_files.write_json(folder / "config.json", config)
    assert frame(tmp_path).dropout[0] == RunConfig().dropout


def test_what_is_no_folder_of_runs_is_refused_as_reports_refuse_it(tmp_path: Path) -> None:
    for refused in (frame, epochs):
        with pytest.raises(ValueError, match="holds no runs"):
            refused(tmp_path)
    folder = store_run(tmp_path)
    (folder / "result.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(ValueError, match=r"result\.json has no field 'status'"):
        frame(tmp_path)


def test_pandas_is_imported_by_those_who_ask_alone() -> None:
    code = "import sys, regrow_lab.store; sys.exit(any(name in sys.modules for name in ('pandas', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
