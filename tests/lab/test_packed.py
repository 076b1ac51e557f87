"""Finished runs in one file: what is packed is read as the folders were, and whatever it may be damaged by is named."""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import store_run

from regrow_lab.commands.cli import main
from regrow_lab.config import RunConfig
from regrow_lab.report.folder_report import write_report
from regrow_lab.run.resumable import train
from regrow_lab.store import folders, packed, whole_files
from regrow_lab.studies import STUDIES, study_runs

SHORT = RunConfig(epochs=2)


def bare(run: folders.StoredRun) -> tuple[Any, ...]:
    """All that is stored of a run, but where."""
    return run.folder, run.config, run.metrics, run.result


def test_a_packed_folder_gives_the_same_report(tmp_path: Path) -> None:
    for seed in range(2):
        store_run(tmp_path, seed=seed)
        store_run(tmp_path, "dense", 0.0, seed=seed)
    text = write_report(tmp_path)
    runs = [bare(run) for run in folders.read_runs(tmp_path)]
    report = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    packing = folders.pack(tmp_path)
    assert (packing.path, packing.runs) == (tmp_path / "runs.jsonl", len(runs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs.jsonl"]
    assert [bare(run) for run in folders.read_runs(tmp_path)] == runs
    assert write_report(tmp_path) == text
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == report
    before = packing.path.read_bytes()
    folders.pack(tmp_path)
    assert packing.path.read_bytes() == before


numbers = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None)
@given(extra=json_values, losses=st.lists(numbers, max_size=4), large=st.booleans())
def test_whatever_a_run_holds_comes_back(
    tmp_path_factory: pytest.TempPathFactory, extra: Any, losses: list[float], large: bool
) -> None:
    directory = tmp_path_factory.mktemp("packed")
    folder = store_run(directory, result={"steps": len(losses), "more": extra})
    rows = [{"epoch": number, "step": number, "loss": loss} for number, loss in enumerate(losses, 1)]
    whole_files.write_lines(folder / "metrics.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "LARGE", 0 if large else 10**9)
        [before] = folders.read_runs(directory)
        path = folders.pack(directory).path
    assert path.name == ("runs.jsonl.gz" if large else "runs.jsonl")
    [after] = folders.read_runs(directory)
    assert bare(after) == bare(before)
    assert not folder.exists()


def test_a_file_that_grows_large_is_compressed_and_small_again_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        store_run(tmp_path, seed=seed)
    content = folders.pack(tmp_path).path.read_bytes()
    monkeypatch.setattr(packed, "LARGE", len(content) - 1)
    path = folders.pack(tmp_path).path
    assert [each.name for each in tmp_path.iterdir()] == ["runs.jsonl.gz"]
    assert gzip.decompress(path.read_bytes()) == content
    monkeypatch.setattr(packed, "LARGE", len(content))
    assert folders.pack(tmp_path).path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["runs.jsonl"]


def test_newer_folders_stand_beside_the_file_and_are_packed_too(tmp_path: Path) -> None:
    store_run(tmp_path, seed=1)
    folders.pack(tmp_path)
    store_run(tmp_path, seed=0)
    (store_run(tmp_path, seed=2) / "result.json").unlink()
    assert [run.config["seed"] for run in folders.read_runs(tmp_path)] == [0, 1, 2]
    packing = folders.pack(tmp_path)
    assert packing.in_words == f"{packing.path}: 2 runs; 1 unfinished stay in {tmp_path / 'runs'}"
    assert [run.result is None for run in folders.read_runs(tmp_path)] == [False, False, True]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_run_in_both_is_one_run(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    folders.pack(tmp_path)
    shutil.copytree(tmp_path / "copy", folder)
    whole_files.write_lines(folder / "metrics.jsonl", [{"epoch": 1, "step": 1260}])  # the folder says more
    [run] = folders.read_runs(tmp_path)
    assert run.metrics == [{"epoch": 1, "step": 1260}]
    (folder / "result.json").unlink()  # an older copy, from before it was finished
    [run] = folders.read_runs(tmp_path)
    assert run.result is not None
    folders.pack(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "copy"] == ["runs.jsonl"]


@pytest.mark.parametrize(
    ("name", "field", "value", "what"),
    [
        ("result.json", "test_accuracy", 12.5, "results"),
        ("result.json", "seconds", 0.6, "results"),
        ("config.json", "epochs", 3, "configurations"),
    ],
)
def test_a_run_in_both_that_contradicts_itself_is_refused_by_name(
    name: str, field: str, value: object, what: str, tmp_path: Path
) -> None:
    folder = store_run(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    folders.pack(tmp_path)
    shutil.copytree(tmp_path / "copy", folder)
    whole_files.write_json(folder / name, whole_files.read_json(folder / name) | {field: value})
    before = (tmp_path / "runs.jsonl").read_bytes()
    for refused in (folders.read_runs, folders.pack):
        with pytest.raises(ValueError, match=rf"line 1 and {folder} are of one run, and contradict .* their {what}: "):
            refused(tmp_path)
    assert (tmp_path / "runs.jsonl").read_bytes() == before
    assert folder.exists()


def test_two_packed_files_that_contradict_each_other(tmp_path: Path) -> None:
    store_run(tmp_path)
    plain = folders.pack(tmp_path).path.read_bytes()
    (tmp_path / "runs.jsonl.gz").write_bytes(gzip.compress(plain))
    assert len(folders.read_runs(tmp_path)) == 1
    (tmp_path / "runs.jsonl.gz").write_bytes(gzip.compress(plain.replace(b'"seconds":0.5', b'"seconds":0.6')))
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 1 and .*runs\.jsonl\.gz, line 1 are of one run"):
        folders.read_runs(tmp_path)


def test_a_copy_under_another_name_is_no_other_seed(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    shutil.copytree(folder, folder.with_name("backup"))
    shutil.move(folder, tmp_path / "away")
    folders.pack(tmp_path)
    shutil.move(tmp_path / "away", folder)
    with pytest.raises(ValueError, match=rf"{folder} holds the same run as .*runs\.jsonl, line 1, which would count"):
        folders.read_runs(tmp_path)


def edited(line: bytes, **fields: object) -> bytes:
    return json.dumps({name: value for name, value in (json.loads(line) | fields).items() if value != ...}).encode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line[:-9], r"line 2 is no JSON"),
        (lambda line: b"\xff" + line, r"line 2 is no JSON \(byte 0 is no UTF-8\)"),
        (lambda line: b"[1]", r"line 2 is no object of schema 1"),
        (lambda line: b"", r"line 2 is no JSON"),
        (lambda line: edited(line, schema=2), r"line 2 is no object of schema 1"),
        (lambda line: edited(line, run=...), r"line 2 is damaged: run, config and result were expected"),
        (lambda line: edited(line, run="../../home"), r"line 2 is damaged: run, config and result were expected"),
        (lambda line: edited(line, run=".."), r"line 2 is damaged: run, config and result were expected"),
        (lambda line: edited(line, result=None), r"line 2 is damaged: run, config and result were expected"),
        (lambda line: edited(line, result={}), r"line 2 has no field 'status'"),
        (lambda line: edited(line, metrics={}), r"line 2 is damaged: metrics are a list of epochs"),
        (lambda line: edited(line, metrics=[1]), r"line 2 is damaged: metrics are a list of epochs"),
        (lambda line: edited(line, metrics=[{"epoch": 2}]), r"line 2 has 1 lines up to step None, not the epochs of"),
        (lambda line: edited(line, config={"seed": -1}), r"line 2 is damaged: seed must be 0 or more"),
        (lambda line: line.replace(b'"seconds":0.5', b'"seconds":NaN'), r"line 2 is no JSON \(NaN is no finite number"),
        (lambda line: line.replace(b'"seconds":0.5', b'"seconds":-1'), r"line 2 is damaged: seconds is -1"),
    ],
)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_a_damaged_line_is_named_with_the_remedy(
    damage: Callable[[bytes], bytes], message: str, compress: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        store_run(tmp_path, seed=seed)
    folders.open_study(tmp_path, "digits", 3)
    path = folders.pack(tmp_path).path
    lines = path.read_bytes().splitlines()
    lines[1] = damage(lines[1])
    if compress:
        path.unlink()
        path = path.with_name("runs.jsonl.gz")
    path.write_bytes(gzip.compress(b"\n".join(lines)) if compress else b"\n".join(lines))
    remedy = r": put it back as it was, or delete the line, and `regrow study digits --seeds 3 --out .*` trains the run"
    with pytest.raises(ValueError, match=rf"^{path}, {message}.*[:;] {remedy[2:]} anew$"):
        folders.read_runs(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"regrow: {path}, line 2 ")
    del lines[1]
    path.write_bytes(gzip.compress(b"\n".join(lines)) if compress else b"\n".join(lines))
    assert len(folders.read_runs(tmp_path)) == 2


@pytest.mark.parametrize("cut", [1, 5, 12, 200, -9, -1])
def test_a_compressed_file_that_was_cut(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGE", 0)
    store_run(tmp_path)
    path = folders.pack(tmp_path).path
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=rf"^{path} is truncated or broken after . runs \(.*\): put it back"):
        folders.read_runs(tmp_path)


def test_a_file_does_not_decide_how_much_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LONGEST_LINE", 10**6)
    path = tmp_path / "runs.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(10**8)))
    with pytest.raises(ValueError, match="has a line of 1,000,000 bytes or more: put it back"):
        folders.read_runs(tmp_path)


def test_a_packed_run_is_finished_and_others_start_from_its_weights(tmp_path: Path) -> None:
    pruning = RunConfig(method="pruning", sparsity=0.9, epochs=1, every=5)
    result = train(pruning, tmp_path, keep_weights=True)
    folder = folders.run_folder(tmp_path, pruning)
    [before] = folders.read_runs(tmp_path)
    assert len(before.metrics) == 1
    assert folders.pack(tmp_path).in_words.endswith(f"1 runs; 1 with their weights.pt stay in {tmp_path / 'runs'}")
    assert [path.name for path in folder.iterdir()] == ["weights.pt"]
    assert folders.is_finished(folder)
    assert train(pruning, tmp_path) == result
    train(RunConfig(method="lottery", sparsity=0.9, epochs=1, every=5), tmp_path)
    assert not (tmp_path / "again").exists()
    assert [bare(run) for run in folders.read_runs(tmp_path) if run.config["method"] == "pruning"] == [bare(before)]


def test_a_study_that_goes_on_in_a_packed_folder_trains_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(STUDIES["digits"], runs=lambda seeds, scale, data: [SHORT])
    monkeypatch.setitem(STUDIES, "digits", short)
    command = ["study", "digits", "--workers", "1", "--out", str(tmp_path)]
    assert main([*command]) == 0
    assert main(["report", str(tmp_path), "--pack"]) == 0
    assert f"{tmp_path / 'runs.jsonl'}: 1 runs\n" in capsys.readouterr().out
    before = (tmp_path / "runs.jsonl").read_bytes()
    assert main([*command]) == 0
    assert "1 runs: 1 finished before, 0 now" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "runs.jsonl").read_bytes() == before


def test_all_studies_of_a_folder_are_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        store_run(tmp_path / name)
        folders.open_study(tmp_path / name, name, 1)
    assert main(["report", str(tmp_path), "--pack"]) == 0
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/runs*")) == [
        "a/runs.jsonl",
        "b/runs.jsonl",
    ]
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_what_cannot_be_packed_is_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no runs \(there is no folder .* and no runs.jsonl\)"):
        folders.pack(tmp_path)
    assert list(tmp_path.iterdir()) == []
    store_run(tmp_path)
    with folders.claim(tmp_path / "runs"), pytest.raises(folders.ClaimedError):
        folders.pack(tmp_path)
    assert not (tmp_path / "runs.jsonl").exists()
    assert len(folders.read_runs(tmp_path)) == 1


@pytest.mark.parametrize("moment", range(6))
def test_packing_may_be_stopped_at_any_moment(moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        whole_files.write_lines(store_run(tmp_path, seed=seed) / "metrics.jsonl", [{"epoch": 1, "step": 1260}])
    before = [bare(run) for run in folders.read_runs(tmp_path)]
    unlink, left = Path.unlink, [moment]

    def stopped(path: Path, missing_ok: bool = False) -> None:
        if path.parent.parent.name == "runs" and path.exists():
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stopped)
        with pytest.raises(KeyboardInterrupt):
            folders.pack(tmp_path)
    assert [bare(run) for run in folders.read_runs(tmp_path)] == before
    folders.pack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]
    assert [bare(run) for run in folders.read_runs(tmp_path)] == before


RESULTS = Path(__file__).parents[2] / "results"


def test_the_studies_stored_with_the_sources_are_finished() -> None:
    """Run ids do not change: what is planned today is what was stored."""
    assert not list(RESULTS.glob("*/runs"))
    for folder in folders.study_folders(RESULTS):
        match folders.read_study(folder):
            case {"study": name, "seeds": seeds, "scale": scale, "data": data, "storage": storage} if name in STUDIES:
                planned = study_runs(name, seeds, scale, data or None, storage)
                left = [run for run in planned if not folders.is_finished(folders.run_folder(folder, run))]
                assert len(left) == (18 if folder.name == "storages-cifar10" else 0)  # of which a part was done
