import fcntl
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from stored import store_run

from regrow_lab.config import RunConfig
from regrow_lab.store import folders, whole_files

HOLD = """
import sys, time
from pathlib import Path
from regrow_lab.store import folders
with folders.claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


RESULT = {
    "status": "diverged",
    "test_accuracy": None,
    "diverged_at": 7,
    "train_ratio": 1.0,
    "seconds": 0.5,
    "steps": 42,
}


def stored_run(directory: Path, config: RunConfig) -> Path:
    folder = folders.run_folder(directory, config)
    with folders.claim(folder):
        folders.write_config(folder, config)
        (folder / "metrics.jsonl").write_text('{"epoch": 1, "step": 21}\n{"epoch": 2, "step": 42}\n')
        whole_files.write_json(folder / "result.json", RESULT)
    return folder


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = RunConfig(seed=4)
    folder = stored_run(tmp_path, config)
    folders.sweep(folder)
    [run] = folders.read_runs(tmp_path)
    assert run.folder == folder == tmp_path / "runs" / config.run_id
    assert run.config == config.to_dict()
    assert run.metrics == [{"epoch": 1, "step": 21}, {"epoch": 2, "step": 42}]
    assert run.result == RESULT
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "metrics.jsonl", "result.json"]


def test_an_unfinished_run_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    folder = stored_run(tmp_path, RunConfig())
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    [run] = folders.read_runs(tmp_path)
    assert run.metrics == [{"epoch": 1}]
    assert run.result is None
    assert not folders.is_finished(folder)


def test_a_folder_that_has_not_got_as_far_as_its_configuration_is_no_run(tmp_path: Path) -> None:
    with folders.claim(tmp_path / "runs" / "begun"):
        assert folders.read_runs(tmp_path) == []


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    whole_files.write_json(path, {"a": 1})

    def fail_halfway(file: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        whole_files.write_whole(path, fail_halfway)
    assert json.loads(path.read_text()) == {"schema": 1, "a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


LINES = [b'{"epoch": 1, "step": 21}\n', b'{"epoch": 2, "step": 42}\n']


@pytest.mark.parametrize(
    "lines",
    [[], LINES[:1], LINES[1:], LINES * 2, LINES[:1] + LINES, LINES[::-1], [LINES[0], LINES[1][:-1]], [b"{}\n"]],
    ids=["emptied", "cut", "beheaded", "doubled", "a line twice", "turned round", "cut by a byte", "without numbers"],
)
def test_metrics_that_do_not_lead_to_the_result(lines: list[bytes], tmp_path: Path) -> None:
    path = stored_run(tmp_path, RunConfig()) / "metrics.jsonl"
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=rf"^{path} has \d lines up to step .* put it back as it was, or delete it"):
        folders.read_runs(tmp_path)
    path.unlink()
    [run] = folders.read_runs(tmp_path)  # as those are that were stored without
    assert run.metrics == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", b'{"epoch": "\xff"}\n', r", line 1 is no JSON \(byte 11 is no UTF-8\): delete"),
        ("metrics.jsonl", b'{"epoch": NaN}\n', r", line 1 is no JSON \(NaN is no finite number\)"),
        ("metrics.jsonl", b"[1]\n", ", line 1 is no object of schema 1"),
        ("result.json", b'{"schema": 1, "seconds": NaN}', r"not readable JSON \(NaN is no finite number\)"),
        ("result.json", b'{"schema": 1, "seconds": 1e999}', r"not readable JSON \(1e999 is no finite number\)"),
        ("result.json", b'{"schema": 1, "schema": 1}', r"not readable JSON \(a name stands twice in one object\)"),
        ("result.json", b'{"schema": 1}', "has no field 'status'"),
        ("config.json", b'{"schema": 1, "seed": ' + b"9" * 5000 + b"}", "not readable JSON .Exceeds the limit"),
        ("config.json", b'{"schema": 1, "seed": -1}', "damaged: seed must be 0 or more, .*given -1; delete"),
        ("config.json", b'{"schema": 1, "method": "x"}', "damaged: unknown method 'x'"),
        ("config.json", b'{"schema": 1, "model": "' + b"x" * 5000 + b'"}', "damaged: model has 5,000 entries"),
    ],
)
def test_a_file_of_a_run_that_is_refused_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = stored_run(tmp_path, RunConfig()) / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        folders.read_runs(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("test_accuracy", 100.1),
        ("test_accuracy", -1),
        ("sparsity", 1.5),
        ("densities", {"fc1.weight": -0.1}),
        ("seconds", -1e-9),
        ("steps", -42),
        ("steps", True),
        ("train_ratio", 1e300),
        ("densities", {str(number): 0.5 for number in range(10_001)}),
    ],
)
def test_a_result_that_cannot_be(field: str, value: object, tmp_path: Path) -> None:
    path = stored_run(tmp_path, RunConfig()) / "result.json"
    whole_files.write_json(path, RESULT | {field: value})
    with pytest.raises(
        ValueError, match=f"^{path} is damaged: {field}.* delete the run's folder to have it done again"
    ):
        folders.read_runs(tmp_path)


@pytest.mark.parametrize("seeds", [0, -3, 10**18, 2**70, 1001, 3.0, True, "3"])
def test_a_number_of_seeds_that_no_study_has(seeds: object, tmp_path: Path) -> None:
    whole_files.write_json(tmp_path / "study.json", {"study": "digits", "seeds": seeds})
    with pytest.raises(
        ValueError, match=r"study.json is damaged: seeds is .*, expected .*and the study's command makes"
    ):
        folders.read_study(tmp_path)


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    "write", [whole_files.write_lines, lambda path, rows: whole_files.append_line(path, {"rows": rows})]
)
def test_on_a_full_disk_the_lines_before_are_whole(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    path, rows = tmp_path / "metrics.jsonl", [{"epoch": number, "name": "x" * 100} for number in range(100)]
    whole_files.write_lines(path, rows)
    before = path.read_bytes()
    with (
        full_disk(4096),
        pytest.raises(whole_files.NotWrittenError, match=r"metrics.jsonl could not be written .*is whole"),
    ):
        write(path, rows)
    assert path.read_bytes().startswith(before)
    assert whole_files.read_lines(path, "") == rows
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_disk_that_is_full_from_the_start_is_named(tmp_path: Path) -> None:
    with full_disk(0), pytest.raises(whole_files.NotWrittenError) as error, folders.claim(tmp_path):
        pass
    assert str(error.value).startswith(f"{tmp_path / 'lock'} could not be written (")
    with folders.claim(tmp_path):
        pass


def test_a_number_that_json_does_not_have_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        whole_files.write_json(tmp_path / "result.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_claimed_run_is_refused_and_says_who_holds_it(tmp_path: Path) -> None:
    with (
        folders.claim(tmp_path),
        pytest.raises(folders.ClaimedError, match="under way in process"),
        folders.claim(tmp_path),
    ):
        pass
    with folders.claim(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(folders.ClaimedError, match=f"process {holder.pid} on"), folders.claim(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with folders.claim(tmp_path):
        pass


def test_what_a_killed_process_was_writing_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt.123.part").write_text("half")
    with folders.claim(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    folders.write_config(tmp_path, RunConfig())
    folders.write_config(tmp_path, RunConfig())
    with pytest.raises(ValueError, match="of another run than dense-seed1-"):
        folders.write_config(tmp_path, RunConfig(seed=1))


@pytest.mark.parametrize(
    ("field", "value"), [("sparsity", None), ("method", ["x"]), ("epochs", "1"), ("batch_size", 2**70)]
)
def test_a_configuration_of_other_kinds_is_damaged(field: str, value: object, tmp_path: Path) -> None:
    folders.write_config(tmp_path, RunConfig())
    fields = whole_files.read_json(tmp_path / "config.json") | {field: value}
    whole_files.write_json(tmp_path / "config.json", fields)
    with pytest.raises(ValueError, match=rf"config\.json is damaged: {field} is .*delete the run's folder"):
        folders.write_config(tmp_path, RunConfig())


def test_a_copy_of_a_run_is_no_other_seed(tmp_path: Path) -> None:
    for seed in range(2):
        folder = store_run(tmp_path, seed=seed)
    copy = folder.with_name(f"{folder.name}-backup")
    shutil.copytree(folder, copy)
    fields = whole_files.read_json(copy / "config.json")
    del fields["dropout"]  # as an older version wrote it
    whole_files.write_json(copy / "config.json", fields)
    with pytest.raises(ValueError, match=rf"{copy} holds the same run as {folder}, which would count twice: move one"):
        folders.read_runs(tmp_path)
    (copy / "result.json").unlink()
    assert sum(run.result is not None for run in folders.read_runs(tmp_path)) == 2


def test_equal_process_numbers_of_two_machines_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "study.json"

    def write(file: IO[bytes]) -> None:
        whole_files.write_json(path, {"of": "the other"})  # as a container with the same number does meanwhile
        file.write(b"ours")

    whole_files.write_whole(path, write)
    assert path.read_bytes() == b"ours"
    assert list(tmp_path.iterdir()) == [path]


def test_refusals_of_reading(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no runs"):
        folders.read_runs(tmp_path)
    with pytest.raises(ValueError, match="is not a run folder"):
        folders.read_run(tmp_path)
    folder = stored_run(tmp_path, RunConfig())
    (folder / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json is not readable JSON"):
        folders.read_runs(tmp_path)
    (folder / "result.json").write_text('{"schema": 2}')
    with pytest.raises(ValueError, match="has schema 2, this version reads 1"):
        folders.read_runs(tmp_path)


def test_a_study_folder_is_made_found_again_and_grows(tmp_path: Path) -> None:
    out = tmp_path / "new" / "digits"
    folders.open_study(out, "digits", 3)
    folders.open_study(out, "digits", 5)
    folders.open_study(out, "digits", 2)
    assert whole_files.read_json(out / "study.json") == {"study": "digits", "seeds": 5}


def test_refusals_of_study_folders(tmp_path: Path) -> None:
    folders.open_study(tmp_path / "a", "other", 3)
    with pytest.raises(ValueError, match="folder of the study 'other', not 'digits'"):
        folders.open_study(tmp_path / "a", "digits", 3)
    with pytest.raises(ValueError, match="is not a study folder, and not empty"):
        folders.open_study(tmp_path, "digits", 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        folders.open_study(tmp_path / "file", "digits", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]


def test_a_claim_leaves_no_lock_whoever_comes_by(tmp_path: Path) -> None:
    with folders.claim(tmp_path):
        with pytest.raises(folders.ClaimedError), folders.claim(tmp_path):
            pass
        assert (tmp_path / "lock").exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="stopped"), folders.claim(tmp_path):
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_took_away_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking the file its last holder ends: what is locked then stands nowhere."""
    lock = fcntl.flock
    seen: list[int] = []

    def slow(file: IO[str], operation: int) -> None:
        if not seen:
            (tmp_path / "lock").unlink()
        seen.append(operation)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with folders.claim(tmp_path):
        assert len(seen) == 2
        with pytest.raises(folders.ClaimedError, match="under way in process"), folders.claim(tmp_path):
            pass


def test_a_claim_never_takes_the_lock_of_another_away(tmp_path: Path) -> None:
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(folders.claim(tmp_path))
        folders.sweep(tmp_path)  # as a process that found the run finished
        second.enter_context(folders.claim(tmp_path))
        first.close()
        assert (tmp_path / "lock").exists()
        with pytest.raises(folders.ClaimedError), folders.claim(tmp_path):
            pass
