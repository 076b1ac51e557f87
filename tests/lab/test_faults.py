"""A run that is killed, or whose disk is full, at every kind of moment ends as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import faults


def test_sixty_faults_and_nothing_is_lost(tmp_path: Path) -> None:
    script = Path(faults.__file__)
    done = subprocess.run(
        [sys.executable, script, tmp_path, "--faults", "60"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found["tried"].values()) >= 60
    assert found["tried"].keys() == faults.FAULTS.keys()
    assert all(found["tried"].values())
    assert found["lost"] == {}


def test_a_difference_would_be_seen(tmp_path: Path) -> None:
    one, other = (faults.left_behind(faults.RUNS[3], tmp_path / name) for name in trained(tmp_path))
    assert faults.same(one, one)
    assert not faults.same(one, other)


def trained(folder: Path) -> list[str]:
    """A run, and the same with one weight changed by its last bit."""
    config = faults.RUNS[3]
    for name in ("one", "other"):
        faults.train(config, folder / name, keep_weights=True)
        faults.checkpoint_files.save(folder / name / "end.pt", "end", {})
    path = faults.folders.run_folder(folder / "other", config) / "weights.pt"
    weights = faults.checkpoint_files.load(path, faults.checkpoint_files.WEIGHTS)
    bits = weights["model"]["fc1.bias"].view(faults.torch.int32)
    bits[0] ^= 1
    faults.checkpoint_files.save(path, faults.checkpoint_files.WEIGHTS, weights)
    return ["one", "other"]
