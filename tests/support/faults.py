"""Kills training at every kind of moment, again and again, and compares the run that goes on with an undisturbed one.

    python tests/support/faults.py FOLDER [--faults 60] [--seed 0]

Every attempt is a child process that a fault ends: SIGKILL at a moment that the parent draws, or at the k-th time that
the child comes to a certain place, or a disk that takes no more in the middle of a checkpoint. The next attempt goes on
from what lies on the disk. A run that has had its share of faults is trained to its end and must then be bit-identical:
weights, masks, optimizer, random state, metrics lines, result. Prints a JSON object: tried and lost by kind of fault.
"""

import argparse
import functools
import io
import itertools
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import regrow.training.layer_group
from regrow.storage.masked_layer import MaskedLayer
from regrow_lab.commands import signals
from regrow_lab.config import RunConfig
from regrow_lab.run import checkpoint, checkpoint_files, training
from regrow_lab.run import resumable as train_module
from regrow_lab.run.measurements import result_of
from regrow_lab.run.resumable import train
from regrow_lab.store import folders, whole_files

SHORT: dict[str, Any] = {"epochs": 3, "every": 3, "batch_size": 256}  # 18 steps
RUNS = (
    RunConfig(method="rigl", sparsity=0.8, nesterov=True, **SHORT),
    RunConfig(method="pruning", sparsity=0.9, optimizer="adam", learning_rate=1e-3, storage="compact", **SHORT),
    RunConfig(method="snfs", sparsity=0.9, schedule="one-cycle", clip=1.0, **SHORT),
    RunConfig(method="set", sparsity=0.9, storage="compact", label_smoothing=0.1, **SHORT),
    RunConfig(
        model="wrn-10-1", data="digits-images", method="rigl-sm", sparsity=0.8, augmentation="crop-flip",
        precision="bf16", epochs=2, every=3, batch_size=512,
    ),
)  # fmt: skip
OF_THE_MOMENT = ("seconds", "samples_per_second", "peak_memory_mib", "date")
FULL_DISK = 3  # exit code of a child that could not write
LONGEST_WAIT = 0.5  # seconds
TRIES = 3


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(count: int, act: Callable[[], None]) -> Callable[[], None]:
    """A function that acts at its `count`-th call."""
    calls = itertools.count(1)

    def called() -> None:
        if next(calls) == count:
            act()

    return called


def before(owner: Any, name: str, moment: Callable[[], None]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)  # with the mark of torch that an optimizer's step calls the hooks already
    def patched(*arguments: Any, **options: Any) -> Any:
        moment()
        return original(*arguments, **options)

    setattr(owner, name, patched)


def in_a_step(count: int) -> None:
    """Between the backward pass and the optimizer's step, or before the forward pass."""
    before(torch.optim.SGD if count % 2 else torch.nn.Linear, "step" if count % 2 else "forward", at(count, die))
    before(torch.optim.Adam, "step", at(count, die))


def told_to_end(count: int) -> None:
    """SIGTERM, as from SLURM at the end of its time: the run writes a checkpoint and stops."""
    before(torch.nn.Linear, "forward", at(count, lambda: os.kill(os.getpid(), signal.SIGTERM)))


def in_an_update(count: int) -> None:
    """When some layers of an update have their new masks and others have not, or none has."""
    if count % 2:
        before(regrow.training.layer_group, "updated_masks", at(count // 2 + 1, die))
    else:
        before(MaskedLayer, "set_mask", at(count + 4, die))


def at_a_file(name: str, stage: str) -> Callable[[int], None]:
    """While a file is written: half of it there, all of it beside its place, or in its place."""

    def arm(count: int) -> None:
        original, moment = whole_files.write_whole, at(1 if name != "checkpoint.pt" else count, die)

        def write_whole(path: Path, write: Callable[[Any], Any]) -> None:
            def half(file: Any) -> None:
                buffer = io.BytesIO()
                write(buffer)
                file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2] if stage == "half" else buffer.getvalue())
                file.flush()
                if stage != "after":
                    moment()
                file.write(buffer.getvalue()[file.tell() :])

            ours = path.name == name
            original(path, half if ours else write)
            if ours and stage == "after":
                moment()

        whole_files.write_whole = checkpoint_files.write_whole = write_whole  # type: ignore[assignment]

    return arm


def in_a_line(_: int) -> None:
    """Half a line of metrics is written."""

    def append_line(path: Path, row: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps(row)[:20])
        die()

    whole_files.append_line = append_line


def full_disk(count: int) -> None:
    """No file may grow beyond a few thousand bytes from the k-th step on: the checkpoint breaks off in the middle."""

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as on a full disk, and the process lives
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))

    before(checkpoint, "write", at(count, fill))


FAULTS: dict[str, Callable[[int], None] | None] = {
    "SIGKILL at any moment": None,
    "SIGKILL in a training step": in_a_step,
    "SIGKILL in an update of the masks": in_an_update,
    "SIGKILL with half a checkpoint written": at_a_file("checkpoint.pt", "half"),
    "SIGKILL before a checkpoint is in its place": at_a_file("checkpoint.pt", "whole"),
    "SIGKILL after a checkpoint is in its place": at_a_file("checkpoint.pt", "after"),
    "SIGKILL with half a line of metrics written": in_a_line,
    "SIGKILL with half the weights written": at_a_file("weights.pt", "half"),
    "SIGKILL with half the result written": at_a_file("result.json", "half"),
    "SIGKILL before the result is in its place": at_a_file("result.json", "whole"),
    "SIGKILL after the result is in its place": at_a_file("result.json", "after"),
    "SIGTERM in a training step": told_to_end,
    "disk full in the middle of a checkpoint": full_disk,
}
AT_THE_END = tuple(name for name in FAULTS if "weights" in name or "result" in name)


def attempt(config: RunConfig, folder: Path, arm: Callable[[int], None] | None, count: int, wait: float | None) -> int:
    """One child that trains until a fault ends it, or to the end; its status."""
    child = os.fork()
    if not child:
        try:
            if arm is not None:
                arm(count)
            train_module.result_of = keeping(folder)
            with signals.asking_to_stop() as signalled:
                train(config, folder, checkpoint_seconds=0, keep_weights=True, stopping=lambda: signalled() != 0)
        except folders.StoppedError:
            os._exit(signals.TERMINATED)
        except whole_files.NotWrittenError as error:
            os._exit(FULL_DISK if "what was there before is whole" in str(error) else 1)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def keeping(folder: Path) -> Callable[[training.Training], dict[str, Any]]:
    """Makes the end of a run leave all of its state, for the comparison."""

    def result(run: training.Training) -> dict[str, Any]:
        checkpoint_files.save(
            folder / "end.pt", "end", {key: value for key, value in run.state_dict().items() if key != "seconds"}
        )
        return result_of(run)

    return result


def left_behind(config: RunConfig, folder: Path) -> tuple[Any, ...]:
    run = folders.run_folder(folder, config)
    result = {k: v for k, v in whole_files.read_json(run / "result.json").items() if k not in OF_THE_MOMENT}
    files = sorted(path.name for path in run.iterdir())
    weights = checkpoint_files.load(run / "weights.pt", checkpoint_files.WEIGHTS)
    return files, result, (run / "metrics.jsonl").read_text(), weights, checkpoint_files.load(folder / "end.pt", "end")


def same(one: Any, two: Any) -> bool:
    """Whether two values are bit-identical."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(value, two[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def disturb(config: RunConfig, folder: Path, share: list[str], draw: random.Random) -> dict[str, int]:
    """Train one run under its share of faults, then to its end; the faults that came to pass, by kind."""
    tried = Counter[str]()
    for name in sorted(share, key=AT_THE_END.__contains__):
        for _ in range(TRIES):
            wait = draw.uniform(0, LONGEST_WAIT) if FAULTS[name] is None else None
            status = attempt(config, folder, FAULTS[name], draw.randint(2, 7), wait)
            if status:
                break
            restart(config, folder)  # it came to its end before the fault
        if status not in (0, signal.SIGKILL, signals.TERMINATED << 8, FULL_DISK << 8):
            raise SystemExit(f"{config.run_id}: {name} ended with status {status}")
        tried[name] += status != 0
    assert attempt(config, folder, None, 0, None) == 0
    return +tried


def restart(config: RunConfig, folder: Path) -> None:
    for path in folders.run_folder(folder, config).iterdir():
        path.unlink()


def main() -> int:
    """Every run of RUNS under its share of the faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=60, help="the least number of faults that must come to pass")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for config in RUNS:
        training.Training(config, torch.device("cpu"))  # what is imported and decoded here, no child has to
    draw = random.Random(options.seed)
    tried, lost = Counter[str](), Counter[str]()
    for number in itertools.count():
        config = RUNS[number % len(RUNS)]
        whole, folder = options.folder / f"whole-{number % len(RUNS)}", options.folder / str(number)
        if not whole.exists():
            assert attempt(config, whole, None, 0, None) == 0
        share = [*FAULTS] if number < len(RUNS) else draw.sample(sorted(FAULTS), 6)
        draw.shuffle(share)
        found = disturb(config, folder, share, draw)
        tried.update(found)
        print(config.run_id, dict(found), file=sys.stderr, flush=True)
        if not same(left_behind(config, whole), left_behind(config, folder)):
            lost.update(found)
        if number + 1 >= len(RUNS) and sum(tried.values()) >= options.faults:
            break
    print(json.dumps({"runs": number + 1, "tried": {name: tried[name] for name in FAULTS}, "lost": dict(lost)}))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
