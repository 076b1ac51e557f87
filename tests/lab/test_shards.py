from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import made_study

from regrow_lab.commands.cli import main
from regrow_lab.config import RunConfig
from regrow_lab.launch import Local, Outcome, deal, shard
from regrow_lab.studies import STUDIES, study_runs


@given(st.sampled_from(["digits", "tickets", "table5"]), st.integers(1, 40))
def test_the_parts_are_the_whole_and_nobody_waits_for_another_part(name: str, parts: int) -> None:
    runs = study_runs(name, 1)
    dealt = deal(runs, parts)
    assert len(dealt) == parts
    assert sorted(run.run_id for part in dealt for run in part) == sorted(run.run_id for run in runs)
    home = {run.run_id: number for number, part in enumerate(dealt) for run in part}
    for run in runs:
        if run.prerequisite and run.prerequisite.run_id in home:
            assert home[run.run_id] == home[run.prerequisite.run_id]


def test_shards_are_counted_from_one() -> None:
    runs = [RunConfig(seed=seed) for seed in range(5)]
    assert [[run.seed for run in shard(runs, f"{number}/3")] for number in (1, 2, 3)] == [[0, 3], [1, 4], [2]]


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "1/", "/3", "a/b", "-1/3", "1/3/5"])
def test_what_is_no_shard_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="a shard is i/n with i from 1 to n, such as 1/4, given"):
        shard([], part)


def test_the_last_shard_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [RunConfig(epochs=1, seed=seed) for seed in range(3)]
    monkeypatch.setitem(STUDIES, "table2", made_study("table2", runs))
    study = ["study", "table2", "--out", str(tmp_path), "--workers", "1"]
    assert main([*study, "--shard", "1/2"]) == 0
    assert "shard 1/2 is done, 1 of the study's 3 runs are not: no report yet" in capsys.readouterr().out
    assert not (tmp_path / "report").exists()
    assert main([*study, "--shard", "2/2"]) == 0
    assert "1 runs: 0 finished before, 1 now" in capsys.readouterr().out
    assert (tmp_path / "report" / "table.md").exists()


def test_no_slurm_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["study", "digits", "--launcher", "slurm", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "regrow: there is no SLURM here (sbatch is not on the path): give the command on the cluster's login node, or "
        "leave out --launcher slurm\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_stopped_pool_leaves_checkpoints_and_goes_on_from_them(tmp_path: Path) -> None:
    class Stop:
        """Interrupts the pool once the run is under way, as Ctrl-C would."""

        def begin(self, total: int, finished: int) -> None: ...

        def epoch(self, worker: object, run: object, row: object) -> None:
            raise KeyboardInterrupt

        def run(self, worker: object, run: object, result: object) -> None: ...

        def note(self, line: str) -> None: ...

        def end(self) -> None: ...

    run = RunConfig(method="rigl", sparsity=0.9, epochs=30)
    with pytest.raises(KeyboardInterrupt):
        Local(workers=1).launch([run], tmp_path, Stop())
    folder = tmp_path / "runs" / run.run_id
    assert (folder / "checkpoint.pt").exists()
    progress = Stop()
    progress.epoch = lambda *_: None
    outcome = Local(workers=1).launch([run], tmp_path, progress)
    assert outcome == Outcome(finished=1)
    assert not (folder / "checkpoint.pt").exists()
