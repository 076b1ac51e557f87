"""A rank that dies ends the job with a message; the next start goes on to where an undisturbed run ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from job import DIES_AT, SAVE_EVERY, job
from ranks import launch


def same(one: object, two: object) -> bool:
    """Whether two checkpoints are bit-identical."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(value, two[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def checkpoint(folder: Path) -> dict[str, object]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("undisturbed")
    launch(job, 2, folder)
    return checkpoint(folder)


def test_a_killed_rank_ends_the_job_and_the_next_start_goes_on(undisturbed, tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    # Either the dead rank is noticed first, or the other one that waits for it in vain.
    either = "process 1 terminated with signal SIGKILL|Process 0 terminated.*(?s:.*)(peer|closed)"
    with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException), match=either):
        launch(job, 2, tmp_path)
    assert checkpoint(tmp_path)["done"] == DIES_AT // SAVE_EVERY * SAVE_EVERY
    launch(job, 2, tmp_path)
    assert same(checkpoint(tmp_path), undisturbed)


@pytest.mark.slow
def test_the_same_under_torchrun(undisturbed, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "job.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run([*torchrun, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)

    (tmp_path / "die").touch()
    died = start()
    assert died.returncode != 0
    assert "Signal 9 (SIGKILL) received" in died.stderr
    again = start()
    assert again.returncode == 0, again.stderr
    assert f"goes on at step {DIES_AT // SAVE_EVERY * SAVE_EVERY}" in again.stdout
    assert same(checkpoint(tmp_path), undisturbed)
