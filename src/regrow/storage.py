"""One weight of an attached model in dense storage: a parameter whose dead entries are 0, and its mask beside it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import optimizers
from regrow.layers import Layer
from regrow.scores import Evidence, Need

DEFAULT_MOMENTUM = 0.9


class MaskedLayer:
    """The reference storage, on any device: full-size weight, gradient and optimizer state, multiplied by a mask.

    Attributes:
        layer: name and shape of the weight.
        parameter: what the optimizer steps.
        mask: bool, True where alive.
        num_alive: alive weights.
        momentum: a buffer of our own, where the recipe needs a momentum that the optimizer does not keep; else None.
        dense_momentum: whether that buffer is one of dense gradients.
    """

    def __init__(self, layer: Layer, parameter: nn.Parameter, mask: Tensor, optimizer: Optimizer, needs: Need) -> None:
        self.layer, self.parameter, self.optimizer, self.needs = layer, parameter, optimizer, needs
        self.alive_steps, self._counted_until, self.num_alive = 0, 0, 0
        self.set_mask(mask, step=0)
        self.dense_momentum = Need.DENSE_MOMENTUM in needs
        absent = Need.MOMENTUM in needs and optimizers.momentum_factor(optimizer, parameter) is None
        self.momentum: Tensor | None = None
        if self.dense_momentum or absent:
            self.momentum = torch.zeros_like(parameter, requires_grad=False)

    def set_mask(self, mask: Tensor, step: int) -> None:
        """A new topology, from weight step ``step`` on; what it kills is zeroed by :meth:`masked_tensors`."""
        self.count(step)
        self.mask = mask.contiguous()
        self.num_alive = int(mask.sum())
        # Multiplying by bytes is four times as fast as by bools on a CPU, which torch casts one by one.
        self.bits = self.mask.view(torch.uint8)

    def count(self, step: int) -> None:
        """Brings ``alive_steps``, the sum over weight steps of alive weights, up to ``step``."""
        self.alive_steps += self.num_alive * (step - self._counted_until)
        self._counted_until = step

    def restore_count(self, alive_steps: int, step: int) -> None:
        """Takes the sum from a saved state."""
        self.alive_steps, self._counted_until = alive_steps, step

    def mean_density(self, step: int) -> float:
        """Density averaged over the weight steps so far; the present one before the first."""
        self.count(step)
        return self.alive_steps / (step * self.layer.size) if step else self.num_alive / self.layer.size

    def mask_gradient(self) -> None:
        """Zeroes the dead part of the gradient."""
        if self.parameter.grad is not None:
            self.parameter.grad.mul_(self.bits)

    def accumulate_momentum(self) -> None:
        """m ← beta · m + g, in our own buffer; beta is the optimizer's momentum or first beta, else 0.9."""
        gradient = self.parameter.grad
        if self.momentum is None or gradient is None:
            return
        factor = optimizers.momentum_factor(self.optimizer, self.parameter)
        step = gradient / optimizers.gradient_scale(self.optimizer)
        self.momentum.mul_(DEFAULT_MOMENTUM if factor is None else factor)
        self.momentum.add_(step if self.dense_momentum else step * self.bits)

    def masked_tensors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The weight and its elementwise state with the bytes to multiply them by; other start values are filled in."""
        yield self.parameter.detach(), self.bits
        for value, initial in optimizers.elementwise_state(self.optimizer, self.parameter):
            if initial == 0:
                yield value, self.bits
            else:
                value.masked_fill_(~self.mask, initial)
        if self.momentum is not None and not self.dense_momentum:
            yield self.momentum, self.bits

    def evidence(self, gradient: Tensor | None, seed: int, step: int) -> Evidence:
        """What the scores of an update may look at."""
        momentum = self.momentum
        if momentum is None and Need.MOMENTUM in self.needs:
            momentum = optimizers.momentum(self.optimizer, self.parameter)
        return Evidence(self.layer, self.mask, self.parameter.detach(), gradient, momentum, seed, step)

    def check(self, weight_steps: int) -> None:
        """The invariants of ``strict=True``: what is dead is exactly 0, and so is its state."""
        state = optimizers.elementwise_state(self.optimizer, self.parameter)
        tensors = [(self.parameter.detach(), 0.0, "weight"), *((value, start, "state") for value, start in state)]
        for tensor, expected, what in tensors:
            broken = ((tensor != expected) & ~self.mask).nonzero()
            if len(broken):
                where = tuple(broken[0].tolist())
                raise RuntimeError(
                    f"dead {what} of '{self.layer.name}' at {where} is {tensor[where].item()}, expected {expected}, "
                    f"after weight step {weight_steps}: something other than the optimizer writes to the weights"
                )
