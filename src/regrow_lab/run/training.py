"""A run under way: the net, its optimizer and masks, and the loop over one epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

import regrow
from regrow_lab.config import RunConfig
from regrow_lab.data import AnyData, Dataset
from regrow_lab.data.batches import Part, Parts
from regrow_lab.methods import is_import
from regrow_lab.run import data_parallel
from regrow_lab.run.build import algorithm_of, arguments_of, data_of, dense_net_of, net_of
from regrow_lab.run.data_order import order_of
from regrow_lab.run.evaluation import Measured, batch_size_for, evaluate, loss_of
from regrow_lab.run.learning_rate import learning_rate
from regrow_lab.run.machine import forget_peak_memory
from regrow_lab.run.optimizer import optimizer_of, state_after_a_step
from regrow_lab.run.starting_point import Origin, begun_with, first_weights, mask_step, masks_of

EXPLODED = 1e4
"""A loss above this counts as diverged; at chance, cross-entropy is the logarithm of the number of classes."""

Row = dict[str, Any]


class Training:
    """A run under way: all its state, and the loop over one epoch."""

    def __init__(
        self, config: RunConfig, device: torch.device, origin: Origin | None = None, data: AnyData | None = None
    ) -> None:
        self.began = time.perf_counter()
        self.config = config
        self.device = device
        self.origin = origin
        loaded = data_of(config, device) if data is None else data
        parts = loaded.parts(config)
        self.data_fingerprint = loaded.fingerprint if isinstance(loaded, Dataset) and is_import(config.data) else ""
        self.held_memory = forget_peak_memory(device)
        self.data = parts
        self.batches = math.ceil(len(parts.train) / config.batch_size)
        self.epochs = config.total_epochs
        self.total_steps = self.epochs * self.batches
        example = parts.example
        self.arguments = arguments = arguments_of(config, parts)
        dense_net, dense_flops = dense_net_of(config, parts)
        check_batches(config, dense_net, parts)
        algorithm = algorithm_of(config, self.total_steps, dense_flops)
        self.dense_flops = dense_flops.dense
        self.dense_weights = num_weights(dense_net)
        torch.manual_seed(config.seed)
        self.model = net_of(config, **arguments).to(device)
        if origin is not None:
            origin.check(self.model)
        weights = first_weights(config, origin, lambda: net_of(config, **arguments))
        if weights is not None:
            self.model.load_state_dict(weights)
        if example.dim() == 4:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has no type for it
        self.forward = torch.compile(self.model, dynamic=False) if config.compiled else self.model
        self.replicated: torch.nn.Module | None = None
        self.optimizer = optimizer_of(config, self.model)
        self.optimizer_state = state_after_a_step(self.optimizer)
        self.flops = regrow.count_flops(self.model, example)
        masks = masks_of(config, origin, self.model, parts)
        self.algorithm = algorithm and begun_with(config, algorithm, masks)
        self.masks_at = mask_step(config, self.total_steps)
        self.sparsifier: regrow.Sparsifier | None = None
        self.step = 0
        self._put_masks_on()
        # Of this epoch, left on the device: asking for a number would wait for it. One tensor for them all: a small one
        # that outlives its step takes a piece of the memory that the next step's logits would have fitted in.
        self.losses = torch.zeros(self.batches, device=device)
        self.rows: list[Row] = []
        self.diverged_at: int | None = None
        self.trained_samples, self.trained_seconds = 0, 0.0  # by this process: for the throughput alone
        self.took_up = time.perf_counter(), 0  # when this process began the epoch, and at which step

    def _put_masks_on(self) -> None:
        if self.algorithm and self.sparsifier is None and self.step >= self.masks_at:
            self.sparsifier = regrow.attach(
                self.model, self.optimizer, self.algorithm, seed=self.config.seed, storage=self.config.storage
            )

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.step == self.total_steps or self.diverged_at is not None

    @property
    def sparsity(self) -> float:
        """Share of the dense net's sparsifiable weights that are dead, or for small-dense were never there."""
        return self.sparsifier.sparsity if self.sparsifier else 1 - num_weights(self.model) / self.dense_weights

    def run_epoch(self, before_step: Callable[[], None]) -> Row:
        """Train to the end of the epoch, from wherever in it the run stands, and return its metrics."""
        config, optimizer, groups = self.config, self.optimizer, self.optimizer.param_groups
        epoch, first = divmod(self.step, self.batches)
        order = order_of(config, epoch, len(self.data.train), self.batches, self.total_steps)
        parameters = list(self.model.parameters())
        self.took_up = time.perf_counter(), self.step
        self.model.train()
        if self.replicated is None:  # not before a checkpoint is taken up, and the masks are on
            self.replicated = data_parallel.replicated(self.forward, self.device)  # type: ignore[arg-type]  # compiled: a module
        for batch in self.data.train.batches(order, config.batch_size, seed=config.seed, epoch=epoch, first=first):
            before_step()
            self._put_masks_on()
            inputs, labels = part = data_parallel.part_of(batch)
            data_parallel.reseed(config.seed, self.step)
            rate = learning_rate(config, self.step, self.total_steps)
            for group in groups:
                group["lr"] = rate
            with self.precision():
                outputs = self.replicated(inputs)
            loss = loss_of(outputs.float(), labels, label_smoothing=config.label_smoothing)
            if data_parallel.world() > 1:
                loss = loss * data_parallel.weight_of(part, batch)
            loss.backward()
            if config.clip:
                torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            for parameter in parameters:  # optimizer.zero_grad() looks for a profiler too: 5 % of a step on the digits
                parameter.grad = None
            self.losses[self.step % self.batches] = data_parallel.mean(loss.detach())
            self.step += 1
        return self._close_epoch(rate, first)

    def precision(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @property
    def samples_per_second(self) -> float:
        """Training samples a second since this process took up the run."""
        return self.trained_samples / self.trained_seconds if self.trained_seconds else 0.0

    def state_of_progress(self) -> Row:
        """Where the run stands inside an epoch, from what is known without waiting for the device."""
        began, first = self.took_up
        samples, seconds = (self.step - first) * self.config.batch_size, time.perf_counter() - began
        return {
            "epoch": self.step / self.batches,
            "step": self.step,
            "train_loss": self.rows[-1]["train_loss"] if self.rows else None,
            "samples_per_second": (self.trained_samples + samples) / (self.trained_seconds + seconds),
        }

    def _close_epoch(self, rate: float, first: int) -> Row:
        losses = self.losses.tolist()
        self.trained_samples += len(self.data.train) - first * self.config.batch_size
        self.trained_seconds += time.perf_counter() - self.took_up[0]
        bad = [number for number, loss in enumerate(losses) if not loss <= EXPLODED]
        if bad:
            self.diverged_at = self.step - len(losses) + bad[0] + 1
        mean = math.fsum(losses) / len(losses)
        row = {
            "epoch": self.step // self.batches,
            "step": self.step,
            "train_loss": mean if math.isfinite(mean) else None,
            **({"train_bits": mean / math.log(2)} if self.data.is_text and math.isfinite(mean) else {}),
            "learning_rate": rate,
            "sparsity": self.sparsity,
            "sparse_flops": round(self.sparse_flops(self.sparsifier.densities if self.sparsifier else {})),
        }
        self.rows.append(row)
        return row

    def sparse_flops(self, densities: dict[str, float]) -> float:
        """Forward FLOPs for one sample at the given densities."""
        return sum(layer.dense * densities.get(name, 1.0) for name, layer in self.flops.layers.items())

    def measure(self, part: Part) -> Measured | None:
        """Loss and accuracy of the net as it is now; None if an output is not finite."""
        numbers = self.data.example.numel() * (self.data.num_classes if self.data.is_text else 1)
        return evaluate(self.model, part, batch_size_for(numbers), self.precision())

    def weights(self) -> dict[str, Any]:
        """The final net: its state and its masks."""
        return {"model": self.model.state_dict(), "masks": dict(self.sparsifier.masks) if self.sparsifier else {}}

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        return {
            "config": self.config.to_dict(),
            "data": self.data_fingerprint,
            "step": self.step,
            "losses": [loss.clone() for loss in self.losses[: self.step % self.batches]],
            "rows": self.rows,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict() if self.sparsifier else None,
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "seconds": time.perf_counter() - self.began,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.step, self.rows = state["step"], state["rows"]
        for number, loss in enumerate(state["losses"]):
            self.losses[number] = loss
        if state["sparsifier"] is not None:
            self._put_masks_on()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.sparsifier and state["sparsifier"] is not None:
            self.sparsifier.load_state_dict(state["sparsifier"])
        torch.set_rng_state(state["random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_random"].cpu(), self.device)
        self.began = time.perf_counter() - state["seconds"]


def check_batches(config: RunConfig, net: torch.nn.Module, data: Parts) -> None:
    """Refuse batches of a single sample for a net whose batch norm has single pixels by then.

    Raises ValueError.
    """
    samples, size = len(data.train), config.batch_size
    if 1 not in map(data_parallel.smallest_part, (min(size, samples), samples % size or size)):
        return
    if not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        return
    try:
        net.train()(data.example.to(next(net.parameters()).device))
    except ValueError:  # torch's, as a mean of one value has no variance
        raise ValueError(
            f"{samples:,} samples in batches of {size} leave one sample alone, and {config.model} has a batch norm "
            "that takes no variance of a single value: give another batch_size or another number of held-out samples"
        ) from None


def num_weights(model: torch.nn.Module) -> int:
    """Number of sparsifiable weights."""
    return sum(layer.size for layer in regrow.find_layers(model).values())
