"""What is measured when a run has been trained: accuracy, costs, and where it was asked for a line or wall times."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import nn

import regrow
from regrow_lab.methods import method_of
from regrow_lab.run.build import builder_of
from regrow_lab.run.evaluation import batch_size_for, evaluate, loss_of
from regrow_lab.run.machine import describe, peak_memory
from regrow_lab.run.starting_point import mask_step, scored_batches
from regrow_lab.run.training import Training

LINE_BATCHES = 10
"""Training batches from which batch norm's statistics are taken anew on the line."""
TIMING_ROUNDS = 15
TIMING_SECONDS = 0.03


def result_of(training: Training) -> dict[str, Any]:
    """The content of result.json; the test data are looked at here alone."""
    test = training.measure(training.data.test) if training.diverged_at is None else None
    if test is None and training.diverged_at is None:
        training.diverged_at = training.step
    data = training.data
    validation = training.measure(data.validation) if data.validation and test else None
    sparsifier = training.sparsifier
    return {
        "status": "finished" if training.diverged_at is None else "diverged",
        "test_accuracy": test.accuracy if test else None,
        "test_loss": test.loss if test else None,
        "test_bits": test.loss / math.log(2) if test and data.is_text else None,
        "validation_accuracy": validation.accuracy if validation else None,
        "validation_loss": validation.loss if validation else None,
        "diverged_at": training.diverged_at,
        "sparsity": training.sparsity,
        "densities": sparsifier.densities if sparsifier else {},
        "sparse_flops_by_epoch": [row["sparse_flops"] for row in training.rows],
        **costs(training),
        "steps": training.step,
        "weight_steps": sparsifier.weight_steps if sparsifier else training.step,
        "updates": sparsifier.num_updates if sparsifier else 0,
        "seconds": round(time.perf_counter() - training.began, 3),
        "samples_per_second": round(training.samples_per_second, 1),
        "peak_memory_mib": round((peak_memory(training.device) - training.held_memory) / 2**20, 1),
        "torch": torch.__version__,
        "machine": describe(training.device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"line": line(training)} if training.config.data_order and test else {}),
        **({"wall": wall_times(training)} if training.config.timed and test else {}),
    }


def costs(training: Training) -> dict[str, Any]:
    """FLOPs a sample: of a forward pass, of a training step, and relative to the dense net.

    train_ratio is that of all the training that led here: a lottery ticket's includes its pruning run, imp's the rounds
    before. As in the report it leaves out the RigL-SM run whose distribution a RigL run starts from; what was left out
    is earlier_train_ratio.
    """
    config, sparsifier, dense = training.config, training.sparsifier, training.dense_flops
    method = method_of(config.method)
    sparse = training.sparse_flops(sparsifier.densities if sparsifier else {})
    mean = training.sparse_flops(sparsifier.mean_densities if sparsifier else {})
    train = regrow.train_flops(training.algorithm, mean, dense) if training.algorithm else 3 * sparse
    if method.scoring is not None:
        batches = scored_batches(config, training.data)
        train += method.scoring.passes * dense * batches / training.total_steps
    dense_share = mask_step(config, training.total_steps) / training.total_steps
    train = dense_share * 3 * dense + (1 - dense_share) * train
    own = train / (3 * dense) * training.epochs / config.epochs
    earlier = float(training.origin.result["train_ratio"]) if training.origin else 0.0
    ratio = own
    if method.includes_prerequisite:  # trained once more in another way, the last round does not count twice
        again = config.data_order or config.start in ("reinitialized", "shuffled")
        ratio = earlier if again else own + earlier
    return {
        "dense_flops": dense,
        "sparse_flops": round(sparse),
        "mean_sparse_flops": mean,
        "train_flops": train,
        "train_ratio": ratio,
        "test_ratio": sparse / dense,
        **({"earlier_train_ratio": earlier} if training.origin else {}),
    }


def line(training: Training) -> dict[str, Any]:
    """Test errors in percent on the straight line from the run that kept its order of the data to this one."""
    assert training.origin is not None
    data, config = training.data, training.config
    shuffled = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))
    batches = [inputs for inputs, _ in itertools.islice(data.train.batches(shuffled, config.batch_size), LINE_BATCHES)]
    numbers = data.example.numel() * (data.num_classes if data.is_text else 1)

    def error(model: nn.Module) -> float:
        measured = evaluate(model, data.test, batch_size_for(numbers), training.precision())
        return 100 - measured.accuracy if measured else 100.0

    walked = regrow.to_dense(copy.deepcopy(training.model))  # between two masks more is alive than in either
    own = copy.deepcopy(walked.state_dict())
    found = regrow.error_along_line(walked, training.origin.model, own, error, batches=batches)
    return {
        "positions": list(found.positions),
        "errors": list(found.errors),
        "above_mean": found.above_mean,
        "above_worst": found.above_worst,
    }


def wall_times(training: Training) -> dict[str, Any]:
    """Time of the run's net relative to the dense net's, measured in turns; where whole channels die, without them.

    train: forward and backward pass of a training batch. test: forward pass of it in evaluation mode. Each ratio is of
    two times of one round, taken one after the other and `TIMING_SECONDS` long at least: the median over
    `TIMING_ROUNDS` rounds, with the smallest and the largest.
    """
    device, data, config = training.device, training.data, training.config
    inputs, labels = next(iter(data.train.batches(torch.arange(len(data.train)), config.batch_size)))
    net = copy.deepcopy(training.model)
    if training.sparsifier and training.algorithm and training.algorithm.pattern == regrow.channels:
        net = regrow.remove_dead_channels(training.model, training.sparsifier.masks, data.example)
    dense = builder_of(config.model)(**training.arguments).to(device)
    if inputs.dim() == 4:
        for each in (net, dense):
            each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has no type for it

    def training_step(model: nn.Module) -> None:
        with training.precision():
            outputs = model(inputs)
        loss_of(outputs.float(), labels).backward()
        model.zero_grad()

    @torch.no_grad()
    def test_step(model: nn.Module) -> None:
        with training.precision():
            model(inputs)

    found: dict[str, Any] = {}
    for name, step in (("train", training_step), ("test", test_step)):
        for model in (net, dense):
            model.train(name == "train")
            step(model)  # a first one warms up
        repeats = 1
        while _seconds(partial(step, dense), repeats, device) * repeats < TIMING_SECONDS:
            repeats *= 2
        rounds = []
        for number in range(TIMING_ROUNDS):
            order = (net, dense) if number % 2 else (dense, net)
            taken = {id(model): _seconds(partial(step, model), repeats, device) for model in order}
            rounds.append((taken[id(net)], taken[id(dense)]))
        ratios = sorted(ours / theirs for ours, theirs in rounds)
        found[f"{name}_ratio"] = statistics.median(ratios)
        found[f"{name}_ratio_min"], found[f"{name}_ratio_max"] = ratios[0], ratios[-1]
        found[f"dense_{name}_seconds"] = statistics.median(times[1] for times in rounds)
    weights = sum(layer.size for layer in regrow.find_layers(net).values())
    return found | {
        "batch_size": len(labels),
        "rounds": TIMING_ROUNDS,
        "weights": weights,
        "flops_ratio": regrow.count_flops(net, data.example).dense / training.dense_flops,
    }


def _seconds(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Time of one step, over so many of them."""
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / repeats
