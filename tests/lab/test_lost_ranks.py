"""A rank that is lost ends the job with a line; what else goes wrong on one stays what it is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from regrow_lab.run import data_parallel
from regrow_lab.store import folders

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:36151"
SCRIPT = """
import os, signal, sys
from regrow_lab.run import training
from regrow_lab.commands.cli import main

run_epoch = training.Training.run_epoch

def breaking(self, before_step):
    if os.environ["RANK"] == "1" and self.step >= 42:
        {fault}
    return run_epoch(self, before_step)

training.Training.run_epoch = breaking
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "error", [RuntimeError(GLOO), dist.DistBackendError("NCCL error"), dist.DistStoreError("gone")]
)
def test_a_lost_connection_is_said_in_a_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    with (
        pytest.raises(folders.LostError, match=r"^rank 3 stopped, as another is gone") as lost,
        data_parallel.together(),
    ):
        raise error
    assert "\n" not in str(lost.value)
    assert "pair.cc" not in str(lost.value)
    assert lost.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), torch.OutOfMemoryError("x"), ValueError(GLOO)])
def test_other_errors_stay_themselves(error: Exception) -> None:
    with pytest.raises(type(error)) as found, data_parallel.together():
        raise error
    assert found.value is error


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", ""),
        ('raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")', "RuntimeError: CUDA out of memory"),
    ],
    ids=["killed", "out of memory"],
)
def test_a_rank_that_dies_ends_the_job_with_a_line(fault: str, said: str, tmp_path: Path) -> None:
    script = tmp_path / "breaking.py"
    script.write_text(SCRIPT.format(fault=fault))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    options = ["train", "--method", "rigl", "--sparsity", "0.9", "--epochs", "60", "--out", tmp_path / "out"]
    done = subprocess.run([*start, *options], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode != 0
    # torchrun tells the other to stop as soon as one is dead, mostly after the other has noticed by itself.
    assert re.search(r"^regrow: (rank 0 stopped, as another is gone|.* stopped at step)", done.stderr, re.MULTILINE)
    assert said in done.stderr
    assert "gone or cannot be reached (CUDA" not in done.stderr
    assert "pair.cc" not in done.stderr
