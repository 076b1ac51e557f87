import gc
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regrow_lab.config import RunConfig
from regrow_lab.data import load_data
from regrow_lab.models import MODELS
from regrow_lab.run import checkpoint_files, training
from regrow_lab.run import data_order as order_module
from regrow_lab.run import resumable as train_module
from regrow_lab.run.build import net_of
from regrow_lab.run.data_order import data_order
from regrow_lab.run.resumable import train
from regrow_lab.run.training import Training
from regrow_lab.store import folders, whole_files

SHORT = {"epochs": 2, "every": 5}  # 42 steps
METHODS = [
    RunConfig(**SHORT),
    RunConfig(method="small-dense", sparsity=0.5, **SHORT),
    RunConfig(method="snip", sparsity=0.5, **SHORT),
    RunConfig(method="pruning", sparsity=0.5, **SHORT),
    *(
        RunConfig(method=method, sparsity=0.5, **SHORT)
        for method in ("static", "set", "rigl", "snfs", "rigl-sg", "rigl-sm")
    ),
    *(RunConfig(method=method, sparsity=0.75, storage="compact", **SHORT) for method in ("rigl", "pruning")),
]
RIGL = RunConfig(method="rigl", sparsity=0.5, **SHORT)
OF_THE_MOMENT = ("seconds", "samples_per_second", "peak_memory_mib", "date")


class Killed(BaseException):
    """Stands for the end of a process."""


def stop_before_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """From now on the `step`-th step of training (from 0) is never reached, once."""
    steps = itertools.count()
    original = F.cross_entropy

    def cross_entropy(*arguments: Any, **options: Any) -> torch.Tensor:
        if next(steps) == step:
            monkeypatch.setattr(F, "cross_entropy", original)
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(F, "cross_entropy", cross_entropy)


def outcome(directory: Path, config: RunConfig) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """All that a run leaves behind: its metrics, its result without what depends on the moment, its weights."""
    folder = folders.run_folder(directory, config)
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.jsonl", "result.json", "weights.pt"}
    result = {
        name: value
        for name, value in whole_files.read_json(folder / "result.json").items()
        if name not in OF_THE_MOMENT
    }
    return (
        (folder / "metrics.jsonl").read_text(),
        result,
        checkpoint_files.load(folder / "weights.pt", checkpoint_files.WEIGHTS),
    )


def assert_same(one: Path, other: Path, config: RunConfig) -> None:
    (metrics, result, weights), (other_metrics, other_result, other_weights) = (
        outcome(directory, config) for directory in (one, other)
    )
    assert metrics == other_metrics
    assert result == other_result
    assert {kind: set(weights[kind]) for kind in weights} == {kind: set(other_weights[kind]) for kind in weights}
    for kind, tensors in weights.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other_weights[kind][name]), (kind, name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method, trained without a stop."""
    directory = tmp_path_factory.mktemp("whole")
    for config in METHODS:
        train(config, directory, keep_weights=True)
    return directory


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
def test_a_run_is_stored_with_its_result(whole: Path, config: RunConfig) -> None:
    stored = folders.read_run(folders.run_folder(whole, config))
    assert stored.result is not None
    assert stored.config == config.to_dict()
    assert stored.result["status"] == "finished"
    assert stored.result["diverged_at"] is None
    assert 15 < stored.result["test_accuracy"] <= 100
    assert stored.result["steps"] == 42
    assert stored.result["dense_flops"] == 100_400
    assert [(row["epoch"], row["step"]) for row in stored.metrics] == [(1, 21), (2, 42)]
    assert stored.metrics[-1]["sparsity"] == stored.result["sparsity"]
    assert stored.metrics[-1]["sparse_flops"] == stored.result["sparse_flops"]


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
def test_sparsity_and_flops_are_the_methods_own(whole: Path, config: RunConfig) -> None:
    result = whole_files.read_json(folders.run_folder(whole, config) / "result.json")
    forward, mean = result["sparse_flops"] / 100_400, result["mean_sparse_flops"] / 100_400
    assert result["test_ratio"] == pytest.approx(forward, abs=1e-5)
    assert result["sparsity"] == pytest.approx(config.sparsity, abs=0.01)
    assert forward == pytest.approx(1 - result["sparsity"], abs=1e-4)
    expected = {
        "snfs": (2 * mean + 1) / 3,
        **dict.fromkeys(("rigl", "rigl-sg", "rigl-sm"), (3 * 5 * mean + 2 * mean + 1) / (3 * 6)),
    }
    assert result["train_ratio"] == pytest.approx(expected.get(config.method, mean), rel=1e-4)
    assert (mean > forward + 0.1) == (config.method == "pruning")
    if config.method in ("rigl", "rigl-sg", "rigl-sm"):
        assert result["updates"] == 6
        assert result["weight_steps"] == 42 - 6
    elif config.method in ("set", "snfs"):
        assert (result["updates"], result["weight_steps"]) == (6, 42)
    elif config.method == "snip":
        assert (result["updates"], result["weight_steps"]) == (1, 41)


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_the_distribution_that_runs_is_the_one_that_was_asked_for(method: str) -> None:
    uniform = Training(RunConfig(method=method, sparsity=0.9, distribution="uniform"), torch.device("cpu"))
    erk = Training(RunConfig(method=method, sparsity=0.9, distribution="erk"), torch.device("cpu"))
    assert uniform.sparsifier
    assert erk.sparsifier
    assert list(uniform.sparsifier.densities.values()) == pytest.approx([0.1, 0.1, 0.1], abs=1e-4)
    assert list(erk.sparsifier.densities.values()) == pytest.approx([0.1089, 0.0766, 0.6318], abs=1e-3)


def test_the_stored_weights_are_the_net_that_was_tested(whole: Path) -> None:
    _, result, weights = outcome(whole, RIGL)
    data, net = load_data("digits", torch.device("cpu")), net_of(RIGL)
    net.load_state_dict(weights["model"])
    with torch.no_grad():
        right = (net(data.test_inputs).argmax(1) == data.test_labels).sum().item()
    assert result["test_accuracy"] == 100 * right / 500
    for name, mask in weights["masks"].items():
        assert mask.float().mean().item() == pytest.approx(result["densities"][name])
        assert not weights["model"][name][~mask].any()


def test_a_finished_run_is_not_trained_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_before_step(monkeypatch, 0)
    assert train(RIGL, whole) == whole_files.read_json(folders.run_folder(whole, RIGL) / "result.json")


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: RunConfig
) -> None:
    for step in (13, 17):  # in the first epoch at step 13, then in the second at 13 + 17 (the rerun of 13 is its 0-th)
        stop_before_step(monkeypatch, step)
        with pytest.raises(Killed):
            train(config, tmp_path, checkpoint_seconds=0, keep_weights=True)
    assert (folders.run_folder(tmp_path, config) / "checkpoint.pt").exists()
    train(config, tmp_path, keep_weights=True)
    assert_same(whole, tmp_path, config)


@pytest.mark.parametrize("step", [0, 1, 5, 6, 7, 20, 21, 22, 41])
def test_wherever_it_is_stopped(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    stop_before_step(monkeypatch, step)
    with pytest.raises(Killed):
        train(RIGL, tmp_path, checkpoint_seconds=0, keep_weights=True)
    torch.rand(3)  # what another run in the same process does to the generator
    train(RIGL, tmp_path, keep_weights=True)
    assert_same(whole, tmp_path, RIGL)


def test_what_the_net_draws_at_random_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_dropout(*, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 50), nn.Dropout(), nn.BatchNorm1d(50), nn.Linear(50, num_classes))

    monkeypatch.setitem(MODELS, "lenet-300-100", with_dropout)
    config = RunConfig(method="set", sparsity=0.5, **SHORT)
    train(config, tmp_path / "whole", keep_weights=True)
    stop_before_step(monkeypatch, 25)
    with pytest.raises(Killed):
        train(config, tmp_path / "stopped", checkpoint_seconds=0, keep_weights=True)
    torch.manual_seed(7)
    train(config, tmp_path / "stopped", keep_weights=True)
    assert_same(tmp_path / "whole", tmp_path / "stopped", config)


def test_without_a_checkpoint_it_starts_anew(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_before_step(monkeypatch, 30)
    with pytest.raises(Killed):
        train(RIGL, tmp_path, keep_weights=True)
    folder = folders.run_folder(tmp_path, RIGL)
    assert not (folder / "checkpoint.pt").exists()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    train(RIGL, tmp_path, keep_weights=True)
    assert_same(whole, tmp_path, RIGL)


def test_killed_while_the_result_is_written(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "result_of", killed)
        with pytest.raises(Killed):
            train(RIGL, tmp_path, checkpoint_seconds=0, keep_weights=True)
    train(RIGL, tmp_path, keep_weights=True)
    assert_same(whole, tmp_path, RIGL)


def test_a_run_that_another_process_has_is_left_alone(tmp_path: Path) -> None:
    with folders.claim(folders.run_folder(tmp_path, RIGL)), pytest.raises(folders.ClaimedError):
        train(RIGL, tmp_path)


def test_one_that_explodes_is_marked(tmp_path: Path) -> None:
    config = RunConfig(method="rigl", sparsity=0.5, learning_rate=1e3, **SHORT)
    result = train(config, tmp_path)
    assert (result["status"], result["test_accuracy"], result["steps"]) == ("diverged", None, 21)
    assert 1 < result["diverged_at"] <= 21


@pytest.mark.parametrize("loss", [math.nan, math.inf, 2e4])
@pytest.mark.parametrize("step", [0, 4, 20, 21, 41])
def test_the_step_of_the_first_loss_that_is_none_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float, step: int
) -> None:
    steps, original = itertools.count(), F.cross_entropy

    def cross_entropy(*arguments: Any, **options: Any) -> torch.Tensor:
        right = original(*arguments, **options)
        return right * 0 + loss if next(steps) in (step, step + 2) else right

    monkeypatch.setattr(F, "cross_entropy", cross_entropy)
    result = train(RIGL, tmp_path)
    assert (result["status"], result["diverged_at"]) == ("diverged", step + 1)
    last = folders.read_run(folders.run_folder(tmp_path, RIGL)).metrics[-1]
    assert last["step"] == result["steps"] == (21 if step < 21 else 42)
    assert (last["train_loss"] is None) == (not math.isfinite(loss))


def test_a_net_that_breaks_in_its_last_step_has_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "evaluate", lambda *arguments: None)
    result = train(RIGL, tmp_path)
    assert (result["status"], result["diverged_at"]) == ("diverged", 42)


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_a_step_leaves_no_tensor_behind(storage: str) -> None:
    # A small one, kept between two large ones that are freed, keeps the heap from using their memory again.
    run = Training(RunConfig(method="rigl", sparsity=0.75, storage=storage, **SHORT), torch.device("cpu"))
    alive: list[int] = []
    run.run_epoch(lambda: alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())))
    # The step of an update, every sixth, holds its gradients.
    assert max(alive[12:]) <= max(alive[:12])


def test_outputs_that_are_not_finite_have_no_accuracy() -> None:
    run = Training(RIGL, torch.device("cpu"))
    assert run.measure(run.data.test) is not None
    with torch.no_grad():
        next(run.model.parameters())[0, 0] = math.nan
    assert run.measure(run.data.test) is None


@pytest.mark.parametrize(
    ("fields", "device", "message"),
    [
        ({"model": "lenet"}, "cpu", "unknown model 'lenet'"),
        ({"data": "numbers"}, "cpu", "unknown data 'numbers': choose one of digits"),
        ({"model": "wrn-22-2"}, "cpu", r"wrn-22-2 takes inputs of shape \(3, 32, 32\), data digits has \(64,\)"),
        ({"method": "rigl", "sparsity": 0.99999}, "cpu", "each needs one"),
        ({"method": "small-dense", "sparsity": 0.9999}, "cpu", "narrowest net"),
        ({"method": "pruning", "sparsity": 0.9, "pruning_start": 0.9}, "cpu", "pruning starts at step"),
        ({}, "toaster", "no device 'toaster' on this machine"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, fields: dict[str, Any], device: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(RunConfig(**fields), tmp_path, device=device)
    assert list(tmp_path.iterdir()) == []


ONE_BY_ONE: dict[str, Any] = {"model": "resnet18-imagenet", "data": "digits-images", "epochs": 1}


@pytest.mark.parametrize(("validation", "batch_size"), [(1264, 16), (1296, 16), (0, 1)])
def test_a_sample_alone_is_refused_where_batch_norm_has_nothing_else(
    validation: int, batch_size: int, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"leave one sample alone, and resnet18-imagenet has a batch norm .*: give ano"
    ):
        train(RunConfig(validation=validation, batch_size=batch_size, **ONE_BY_ONE), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(**ONE_BY_ONE, validation=1263, batch_size=16),
        RunConfig(**ONE_BY_ONE | {"model": "wrn-10-1"}, batch_size=16),
        RunConfig(batch_size=16),
    ],
    ids=["two left", "pixels left", "no batch norm"],
)
def test_a_sample_alone_is_trained_where_that_can_be(config: RunConfig) -> None:
    Training(config, torch.device("cpu"))


def test_a_longer_run_stretches_the_schedule_and_the_last_update_alone(tmp_path: Path) -> None:
    config = RunConfig(method="set", sparsity=0.9, multiplier=2, **SHORT)
    result = train(config, tmp_path)
    assert result["steps"] == 84
    assert result["updates"] == 0.75 * 84 // 5
    assert result["train_ratio"] == pytest.approx(0.2, rel=1e-3)
    rates = [row["learning_rate"] for row in folders.read_run(folders.run_folder(tmp_path, config)).metrics]
    assert rates == [pytest.approx(0.05 * (1 + math.cos(math.pi * step / 84))) for step in (20, 41, 62, 83)]


def test_weight_decay_is_for_matrices_alone() -> None:
    decayed, free = Training(RIGL, torch.device("cpu")).optimizer.param_groups
    assert {parameter.dim() for parameter in decayed["params"]} == {2}
    assert {parameter.dim() for parameter in free["params"]} == {1}
    assert (decayed["weight_decay"], free["weight_decay"]) == (5e-4, 0)


def test_all_methods_start_from_the_same_weights() -> None:
    dense = dict(Training(RunConfig(seed=3), torch.device("cpu")).model.named_parameters())
    run = Training(RunConfig(method="rigl", sparsity=0.5, seed=3), torch.device("cpu"))
    assert run.sparsifier is not None
    for name, parameter in run.model.named_parameters():
        mask = run.sparsifier.masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter, dense[name] * mask)


def test_every_epoch_sees_each_sample_once_in_an_order_of_its_own() -> None:
    orders = {tuple(data_order(seed, epoch, 50).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert torch.equal(data_order(1, 2, 50), data_order(1, 2, 50))


def test_epochs_are_trained_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def order(seed: int, epoch: int, samples: int) -> torch.Tensor:
        asked.append((seed, epoch, samples))
        return data_order(seed, epoch, samples)

    monkeypatch.setattr(order_module, "data_order", order)
    train(RunConfig(seed=5, epochs=3), tmp_path)
    assert asked == [(5, 0, 1297), (5, 1, 1297), (5, 2, 1297)]


def test_digits_are_split_once_and_for_all() -> None:
    data = load_data("digits", torch.device("cpu"))
    assert (data.train_inputs.shape, data.test_inputs.shape) == ((1297, 64), (500, 64))
    assert (data.train_labels.shape, data.test_labels.shape) == ((1297,), (500,))
    assert (data.train_inputs.dtype, data.train_labels.dtype, data.num_classes) == (torch.float32, torch.int64, 10)
    assert (data.train_inputs.min().item(), data.train_inputs.max().item()) == (0, 1)
    # The first of the split: it must not depend on the version of torch, else stored runs are not comparable.
    assert data.test_labels[:12].tolist() == [6, 5, 5, 7, 9, 9, 8, 4, 6, 8, 6, 0]
