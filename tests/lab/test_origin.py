"""Runs that start from other runs: tiny real ones on digits."""

import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

import regrow
from regrow_lab.config import RunConfig
from regrow_lab.launch import Local
from regrow_lab.launch.progress import progress_for
from regrow_lab.methods import imp_sparsity
from regrow_lab.run import checkpoint_files
from regrow_lab.run.data_order import order_of
from regrow_lab.run.measurements import result_of
from regrow_lab.run.resumable import train
from regrow_lab.run.starting_point import Origin
from regrow_lab.run.training import Training
from regrow_lab.store import folders, whole_files

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {"epochs": 2, "every": 5}
WEIGHTS = 64 * 300 + 300 * 100 + 1000
STEPS = 2 * math.ceil(1297 / 64)


def imp(level: int, **fields: Any) -> RunConfig:
    return RunConfig(method="imp", sparsity=imp_sparsity(level), **SHORT, **fields)


def end(directory: Path, config: RunConfig) -> Origin:
    """The end of a run, trained if need be, with its weights."""
    train(config, directory, keep_weights=True)
    return Origin.read(folders.run_folder(directory, config), CPU)


def alive(origin: Origin) -> int:
    return sum(int(mask.sum()) for mask in origin.masks.values())


def test_lottery_is_the_mask_of_pruning_on_the_seeds_own_weights(tmp_path: Path) -> None:
    config = RunConfig(method="lottery", sparsity=0.8, seed=3, **SHORT)
    ticket = end(tmp_path, config)
    pruning = Origin.read(folders.run_folder(tmp_path, dataclasses.replace(config, method="pruning")), CPU)
    assert all(torch.equal(mask, pruning.masks[name]) for name, mask in ticket.masks.items())
    fresh = Training(config, CPU, pruning)
    dense = Training(RunConfig(seed=3, **SHORT), CPU)
    for name, mask in pruning.masks.items():
        assert torch.equal(fresh.model.get_parameter(name), dense.model.get_parameter(name) * mask)
    expected = pruning.result["train_ratio"] + ticket.result["test_ratio"]
    assert ticket.result["train_ratio"] == pytest.approx(expected)
    assert ticket.result["test_ratio"] == pytest.approx(0.2, abs=1e-3)


def test_imp_prunes_exactly_a_fifth_a_round_and_masks_are_nested(tmp_path: Path) -> None:
    ends = [end(tmp_path, imp(level)) for level in (1, 2, 3)]
    assert [alive(each) for each in ends] == [math.floor(0.8**level * WEIGHTS) for level in (1, 2, 3)]
    for one, other in itertools.pairwise(ends):
        assert all(bool((other.masks[name] <= mask).all()) for name, mask in one.masks.items())
    before = Origin.read(folders.run_folder(tmp_path, RunConfig(**SHORT)), CPU)
    kept = {name: before.model[name][mask].abs().min() for name, mask in ends[0].masks.items()}
    lost = {name: before.model[name][~mask].abs().max() for name, mask in ends[0].masks.items()}
    assert max(lost.values()) <= min(kept.values())  # one threshold over all layers
    ratios = [each.result["train_ratio"] for each in ends]
    assert ratios == pytest.approx([1.8, 2.44, 2.952], abs=1e-3)  # the sum over the rounds


def test_a_rewound_round_is_the_dense_run_until_the_rewind_step(tmp_path: Path) -> None:
    before = end(tmp_path, RunConfig(**SHORT))
    dense, late = Training(RunConfig(**SHORT), CPU), Training(imp(1, rewind=0.5), CPU, before)
    assert late.masks_at == STEPS // 2
    states = {}
    for run in (dense, late):
        run.run_epoch(lambda: None)
        states[run] = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    assert late.sparsifier is None
    assert all(torch.equal(states[dense][name], tensor) for name, tensor in states[late].items())
    late.run_epoch(lambda: None)
    assert late.sparsifier is not None
    assert late.sparsity == pytest.approx(0.2, abs=1e-4)
    assert result_of(late)["train_ratio"] == pytest.approx(1 + 0.5 + 0.5 * 0.8, abs=1e-3)


def test_masks_are_put_on_however_late_the_rewind(tmp_path: Path) -> None:
    config = RunConfig(method="imp", sparsity=imp_sparsity(1), rewind=0.99, epochs=1)
    run = Training(config, CPU, end(tmp_path, RunConfig(epochs=1)))
    assert run.masks_at == STEPS // 2 - 1
    run.run_epoch(lambda: None)
    assert run.sparsity == pytest.approx(0.2, abs=1e-4)
    other = dataclasses.replace(config, data_order=1)
    last = order_of(other, 0, 1297, STEPS // 2, STEPS // 2)[-17:]
    assert not torch.equal(last, order_of(config, 0, 1297, STEPS // 2, STEPS // 2)[-17:])


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(method="lottery", sparsity=0.8, epochs=1, learning_rate=1e30),
        RunConfig(method="imp", sparsity=imp_sparsity(1), epochs=1, learning_rate=1e30),
        RunConfig(data_order=1, epochs=1, learning_rate=1e30),
    ],
    ids=lambda config: config.method,
)
def test_nothing_starts_from_a_run_that_diverged(config: RunConfig, tmp_path: Path) -> None:
    needed = config.prerequisite
    assert needed is not None
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"starts from the end of {needed.run_id}, which diverged at step \d+: "):
            train(config, tmp_path)
    assert not folders.run_folder(tmp_path, config).exists()


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished pruning run, with its weights."""
    folder = tmp_path_factory.mktemp("pruned")
    end(folder, PRUNED)
    return folder


PRUNED = RunConfig(method="pruning", sparsity=0.9, **SHORT)
MASK, WEIGHT = ("masks", "fc1.weight"), ("model", "fc1.weight")


def put(*path: str, value: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    """Changes one tensor of weights.pt."""

    def change(content: dict[str, Any]) -> None:
        content[path[0]][path[1]] = value(content[path[0]][path[1]])

    return change


def all_alive(content: dict[str, Any]) -> None:
    for mask in content["masks"].values():
        mask.fill_(True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (all_alive, "19,200 of 19,200 weights of fc1.weight are alive, its result says a share of 0"),
        (lambda content: content.pop("masks"), "its masks are none, fc1.weight, fc2.weight, fc3.weight were expected"),
        (lambda content: content.pop("model"), "its weights are none"),
        (lambda content: content.update(masks={}), "its masks are none"),
        (lambda content: content.update(masks=[1]), "its masks are no table"),
        (lambda content: content["masks"].pop("fc2.weight"), "its masks are fc1.weight, fc3.weight"),
        (lambda content: content["masks"].update({"\x1b[2J": 1}), r"its masks are \\x1b\[2J"),
        (lambda content: content["model"].pop("fc2.bias"), "its weights are"),
        (put(*MASK, value=torch.Tensor.float), "the mask of fc1.weight is not torch.bool of shape"),
        (put(*MASK, value=torch.Tensor.byte), "the mask of fc1.weight is not torch.bool of shape"),
        (put(*MASK, value=lambda mask: mask.T), "the mask of fc1.weight is not torch.bool of shape"),
        (put(*MASK, value=lambda mask: mask.to("meta")), "the mask of fc1.weight is not torch.bool of shape"),
        (put(*MASK, value=torch.Tensor.tolist), "the mask of fc1.weight is not torch.bool of shape"),
        (put(*MASK, value=lambda mask: mask.flip(0)), "dead weights of fc1.weight are not 0"),
        (put(*WEIGHT, value=torch.Tensor.double), "fc1.weight is not torch.float32 of shape"),
        (put(*WEIGHT, value=lambda weight: weight[:10]), "fc1.weight is not torch.float32 of shape"),
        (put(*WEIGHT, value=lambda weight: weight * math.nan), "fc1.weight has values that are not finite"),
    ],
)
def test_weights_that_are_not_the_end_of_the_run_are_refused(
    change: Callable[[dict[str, Any]], None], message: str, pruned: Path, tmp_path: Path
) -> None:
    shutil.copytree(pruned, tmp_path / "runs-of", dirs_exist_ok=True)
    ticket = dataclasses.replace(PRUNED, method="lottery")
    path = folders.run_folder(tmp_path / "runs-of", PRUNED) / "weights.pt"
    content = checkpoint_files.load(path, checkpoint_files.WEIGHTS)
    change(content)
    checkpoint_files.save(path, checkpoint_files.WEIGHTS, content)
    with pytest.raises(ValueError, match=rf"^{path} is not the end of its run: {message}.*; delete its folder to have"):
        train(ticket, tmp_path / "runs-of")
    assert not folders.run_folder(tmp_path / "runs-of", ticket).exists()


def test_the_other_starts_of_imp(tmp_path: Path) -> None:
    rewound, trained = end(tmp_path, imp(2)), Training(imp(1, start="trained"), CPU, end(tmp_path, RunConfig(**SHORT)))
    dense = Origin.read(folders.run_folder(tmp_path, RunConfig(**SHORT)), CPU)
    assert trained.sparsifier is not None
    for name, mask in trained.sparsifier.masks.items():
        assert torch.equal(trained.model.get_parameter(name), dense.model[name] * mask)
    other = Training(imp(2, start="reinitialized"), CPU, rewound)
    shuffled = Training(imp(2, start="shuffled"), CPU, rewound)
    same = Training(RunConfig(**SHORT), CPU)
    assert other.sparsifier is not None
    assert shuffled.sparsifier is not None
    for name, mask in rewound.masks.items():
        assert torch.equal(other.sparsifier.masks[name], mask)
        assert not torch.equal(other.model.get_parameter(name), same.model.get_parameter(name) * mask)
        moved = shuffled.sparsifier.masks[name]
        assert int(moved.sum()) == int(mask.sum())
        assert not torch.equal(moved, mask)
        assert torch.equal(shuffled.model.get_parameter(name), same.model.get_parameter(name) * moved)


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_rigl_starts_from_what_rigl_sm_found(distribution: str, tmp_path: Path) -> None:
    config = RunConfig(method="rigl", sparsity=0.8, distribution=distribution, start="rigl-sm", **SHORT)
    assert config.prerequisite == RunConfig(method="rigl-sm", sparsity=0.8, distribution=distribution, **SHORT)
    found = end(tmp_path, config.prerequisite)
    masks = Training(config, CPU, found)
    counts = Training(dataclasses.replace(config, start="rigl-sm-densities"), CPU, found)
    assert masks.sparsifier is not None
    assert counts.sparsifier is not None
    assert all(torch.equal(masks.sparsifier.masks[name], mask) for name, mask in found.masks.items())
    assert counts.sparsifier.num_alive == masks.sparsifier.num_alive
    assert not all(torch.equal(counts.sparsifier.masks[name], mask) for name, mask in found.masks.items())
    result = train(config, tmp_path)
    assert result["updates"] > 0
    assert result["earlier_train_ratio"] == found.result["train_ratio"]
    assert result["train_ratio"] < 0.3  # as in the report, the run before is not counted


@pytest.mark.parametrize(
    ("method", "find", "passes"), [("grasp", regrow.grasp_scores, 12), ("obd", regrow.obd_scores, 900)]
)
def test_a_scored_run_keeps_the_largest_scores_and_counts_their_passes(
    method: str, find: Callable[..., dict[str, torch.Tensor]], passes: int
) -> None:
    config = RunConfig(method=method, sparsity=0.9, **SHORT)
    run = Training(config, CPU)
    dense = Training(RunConfig(**SHORT), CPU)
    batches = [
        (dense.data.train.inputs[first : first + 64], dense.data.train.labels[first : first + 64]) for first in (0, 64)
    ]
    scores = find(dense.model, F.cross_entropy, batches)
    expected = regrow.masks_from_scores(scores, 0.9)
    assert run.sparsifier is not None
    assert all(torch.equal(run.sparsifier.masks[name], mask) for name, mask in expected.items())
    while not run.done:
        run.run_epoch(lambda: None)
    assert result_of(run)["train_ratio"] == pytest.approx(0.1 + passes / 3 * len(batches) / STEPS, rel=0.01)


def test_the_order_of_the_data_parts_at_the_rewind_step() -> None:
    plain = RunConfig(batch_size=10)
    other = RunConfig(batch_size=10, data_order=1, rewind=0.375)  # of 8 steps: after the first of the second epoch
    assert torch.equal(order_of(plain, 0, 20, 2, 8), order_of(other, 0, 20, 2, 8))
    before, after = order_of(plain, 1, 20, 2, 8), order_of(other, 1, 20, 2, 8)
    assert torch.equal(before[:10], after[:10])
    assert not torch.equal(before, after)
    for epoch in (1, 2):
        assert sorted(order_of(other, epoch, 20, 2, 8).tolist()) == list(range(20))
    third = dataclasses.replace(other, data_order=2)
    assert not torch.equal(order_of(other, 2, 20, 2, 8), order_of(third, 2, 20, 2, 8))


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(data_order=1, rewind=0.1, **SHORT),
        imp(1, rewind=0.1, data_order=1),
        imp(4, rewind=0.1, data_order=1, storage="compact"),
    ],
)
def test_the_line_goes_from_the_run_that_kept_its_order_to_this_one(config: RunConfig, tmp_path: Path) -> None:
    result = train(config, tmp_path)
    assert config.prerequisite is not None
    base = whole_files.read_json(folders.run_folder(tmp_path, config.prerequisite) / "result.json")
    errors = result["line"]["errors"]
    assert errors[0] == pytest.approx(100 - base["test_accuracy"])
    assert errors[-1] == pytest.approx(100 - result["test_accuracy"])
    assert result["test_accuracy"] != base["test_accuracy"]
    assert result["line"]["above_mean"] == pytest.approx(max(errors) - (errors[0] + errors[-1]) / 2)
    assert result["train_ratio"] == base["train_ratio"]


def test_a_late_rewound_round_that_is_stopped_anywhere_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    config = imp(1, rewind=0.5)
    whole = end(tmp_path / "whole", config)
    train(RunConfig(**SHORT), tmp_path / "stopped", keep_weights=True)
    original = F.cross_entropy
    for at in (3, STEPS // 2 - 3, 4):  # before the rewind step, at it (at the first step after it), and behind it
        count = itertools.count()

        def cross_entropy(*arguments: Any, at: int = at, count: Any = count, **options: Any) -> torch.Tensor:
            if next(count) == at:
                raise Killed
            return original(*arguments, **options)

        monkeypatch.setattr(F, "cross_entropy", cross_entropy)
        with pytest.raises(Killed):
            train(config, tmp_path / "stopped", checkpoint_seconds=0)
    monkeypatch.setattr(F, "cross_entropy", original)
    stopped = end(tmp_path / "stopped", config)
    assert all(torch.equal(tensor, whole.model[name]) for name, tensor in stopped.model.items())
    assert all(torch.equal(mask, whole.masks[name]) for name, mask in stopped.masks.items())
    assert stopped.result["mean_sparse_flops"] == whole.result["mean_sparse_flops"]


def test_what_is_finished_without_weights_is_trained_beside_it_and_stays(tmp_path: Path) -> None:
    config = RunConfig(method="lottery", sparsity=0.8, **SHORT)
    assert config.prerequisite is not None
    train(config.prerequisite, tmp_path)
    path = folders.run_folder(tmp_path, config.prerequisite) / "result.json"
    before = path.read_bytes()
    train(config, tmp_path)
    assert path.read_bytes() == before
    assert (folders.run_folder(tmp_path / "again", config.prerequisite) / "weights.pt").exists()


def test_the_launcher_keeps_the_weights_that_are_needed_and_no_others(tmp_path: Path) -> None:
    lottery = RunConfig(method="lottery", sparsity=0.8, **SHORT)
    assert lottery.prerequisite is not None
    runs = [lottery, RunConfig(**SHORT), lottery.prerequisite]
    done = Local(workers=1).launch(runs, tmp_path, progress_for(Console(quiet=True)))
    assert (done.finished, done.failed) == (3, {})
    assert [(folders.run_folder(tmp_path, run) / "weights.pt").exists() for run in runs] == [False, False, True]
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("method", ["dense", "small-dense", "rigl", "rigl-struct"])
def test_wall_times_are_of_the_net_as_it_is(method: str) -> None:
    config = RunConfig(
        model="wrn-10-1", data="digits-images", method=method, sparsity=0.0 if method == "dense" else 0.7,
        epochs=1, batch_size=256, timed=True,
    )  # fmt: skip
    run = Training(config, CPU)
    run.run_epoch(lambda: None)
    result = result_of(run)
    wall = result["wall"]
    assert wall["train_ratio"] > 0
    assert wall["test_ratio"] > 0
    full = method in ("dense", "rigl")
    assert (wall["flops_ratio"] == 1) == full
    if method == "rigl-struct":
        # A channel of a sum goes only where all its terms lack it, so this is not the FLOPs of the masks.
        assert wall["flops_ratio"] < 1
        assert wall["weights"] < sum(mask.numel() for mask in run.sparsifier.masks.values())  # type: ignore[union-attr]
    if method == "small-dense":
        assert wall["flops_ratio"] == pytest.approx(result["test_ratio"])


def test_a_multiple_that_is_not_whole_is_rounded_to_epochs_and_counted_so() -> None:
    config = RunConfig(method="static", sparsity=0.9, epochs=2, multiplier=1.7)
    run = Training(config, CPU)
    assert (run.epochs, run.total_steps) == (3, 3 * STEPS // 2)
    assert result_of(run)["train_ratio"] == pytest.approx(0.1 * 3 / 2, rel=1e-3)
    whole = RunConfig(method="static", sparsity=0.9, multiplier=2.0)
    assert whole == RunConfig(method="static", sparsity=0.9, multiplier=2)
    assert whole.run_id == RunConfig(method="static", sparsity=0.9, multiplier=2).run_id
