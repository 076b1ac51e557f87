"""The dense storage: a full-size weight and its mask.

In dense storage the dead entries of the parameter are 0 and a mask stands beside it. The compact storage, where only
alive entries exist, is in :mod:`regrow.compaction`.
"""

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.layers import Layer
from regrow.parts.scores import Evidence, Need
from regrow.storage.distributed import cut_like, evidence_for, is_cut, piece, whole
from regrow.storage.optimizer_holders import Holders
from regrow.storage.optimizers import is_quantised
from regrow.storage.stored_layer import AliveCount, StoredLayer, in_words, on_gradient

DEFAULT_MOMENTUM = 0.9
PROBES = 512
"""Places of a weight that are looked at before every step, as a write through ``.data`` leaves no other trace."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def to_mask(tensor: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor's own memory as integers, and bytes to multiply it by that fit it in shape.

    Times 0 is 0 there, where NaN · 0 would be NaN, and times 1 changes no bit.
    """
    memory = piece(tensor.detach())
    if memory.dtype == torch.complex128:  # no integer is as long as one of its numbers
        return torch.view_as_real(memory).view(torch.int64), bits.unsqueeze(-1)
    return memory.view(INTEGERS[memory.element_size()]), bits


def erase_quantised(state: Tensor, mask: Tensor) -> None:
    """Zeroes the dead entries of a state that is kept as codes; written anew only where some are not 0."""
    numbers = state.dequantize()
    if not bool(numbers[~mask].any()):
        return
    state.copy_(numbers * mask)
    if bool(state.dequantize()[~mask].any()):
        raise RuntimeError(
            f"the optimizer keeps its state as a {type(state).__name__}, which cannot hold an exact 0, so the state of "
            "dead weights would not stay 0: take an optimizer that keeps float32 or bfloat16 state"
        )


class DenseStorage:
    """Every layer stays a :class:`MaskedLayer`."""

    name = "dense"

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Any will do."""

    def take_in(self, optimizer: Optimizer) -> None:
        """Nothing to do."""

    def place(self, layer: StoredLayer) -> StoredLayer:
        """The layer itself."""
        return layer

    def notes(self) -> Mapping[str, str]:
        """Nothing to say."""
        return {}

    def remove(self) -> None:
        """Nothing to undo."""

    def state(self) -> Mapping[str, Any]:
        """Nothing to keep."""
        return {}

    def check(self, saved: Any) -> None:
        """Nothing is taken up."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Nothing is taken up."""


class MaskedLayer:
    """The reference storage, on any device: full-size weight, gradient and optimizer state, multiplied by a mask.

    Attributes:
        layer: name and shape of the weight.
        parameter: what the optimizer steps.
        mask: bool, True where alive.
        alive: how many are.
        momentum: a buffer of our own, where the recipe needs a momentum that the optimizer does not keep; else None.
        dense_momentum: whether that buffer is one of dense gradients.
        state_loaded: whether the optimizer's state is what somebody loaded, and the masks for it may yet come.
    """

    def __init__(self, layer: Layer, parameter: nn.Parameter, mask: Tensor, holders: Holders, needs: Need) -> None:
        self.layer, self.parameter, self.holders, self.needs = layer, parameter, holders, needs
        self.alive = AliveCount(layer.size)
        # A gradient, its version when it was masked, and where it lay.
        self._masked: tuple[weakref.ref[Tensor], int, int] | None
        # The weight's version and place when it was settled; its memory, so that nothing else comes to lie there.
        self._settled: tuple[int, int, torch.UntypedStorage] | None
        self.state_loaded = False
        self.set_mask(mask, step=0)
        self.settle()
        self.dense_momentum = Need.DENSE_MOMENTUM in needs
        absent = Need.MOMENTUM in needs and holders.momentum_factor(parameter) is None
        self.momentum: Tensor | None = None
        if self.dense_momentum or absent:
            self.momentum = torch.zeros_like(parameter, requires_grad=False)
        self._wants_dense = False
        self._lent: tuple[Tensor, Tensor] | None = None
        self._hook = on_gradient(parameter, self._mask_as_it_arrives)

    def set_mask(self, mask: Tensor, step: int) -> None:
        """A new topology, from weight step ``step`` on; what it kills is zeroed by :meth:`masked_tensors`."""
        self._masked = None
        self.mask = cut_like(mask.contiguous(), self.parameter)
        self.alive.change(int(mask.sum()), step)
        # Multiplying by bytes is four times as fast as by bools on a CPU, which torch casts one by one.
        self.bits = piece(self.mask).view(torch.uint8)
        self._probes = _probes(self.mask)

    def load_mask(self, mask: Tensor, step: int) -> None:
        """Another mask, and nothing is settled."""
        self.set_mask(mask, step)
        self._settled = None

    @property
    def settled(self) -> bool:
        """Whether neither weight nor state was written to since they were as the mask says, as far as torch tells."""
        return self._settled is not None and not self.state_loaded and self._settled[:2] == self._traces()[:2]

    @property
    def suspect(self) -> bool:
        """The same, and a look at some of the dead weights."""
        if not self.settled:
            return True
        return self._probes is not None and bool(self.parameter.detach().take(self._probes).any())

    def strays(self) -> str | None:
        """Counts them, over all ranks where the weight is cut."""
        weights = self._outside(self.parameter.detach())
        state = 0
        if self.state_loaded:
            found = self._plain_state()
            state = max((self._outside(value) for value, start in found if start == 0), default=0)
        return in_words(weights, int(whole((self.parameter.detach() != 0).sum())) if weights else 0, state)

    def _outside(self, tensor: Tensor) -> int:
        return int(whole(((tensor != 0) & ~self.mask).sum()))

    def was_loaded(self) -> None:
        """To be looked at before the next step."""
        self.state_loaded = True

    def settle(self) -> None:
        """Notes the traces that a write would leave."""
        self._settled, self.state_loaded = self._traces(), False

    def _traces(self) -> tuple[int, int, torch.UntypedStorage]:
        here = piece(self.parameter.detach())
        version = 0 if self.parameter.is_inference() else self.parameter._version
        return version, here.data_ptr(), here.untyped_storage()

    def load_momentum(self, momentum: Tensor) -> None:
        """Fills the own buffer from a saved state."""
        if self.momentum is not None:
            self.momentum.copy_(cut_like(whole(momentum), self.parameter))

    def expect_dense_gradient(self, wanted: bool) -> None:
        """Whether the coming gradient stays as it arrives."""
        self._wants_dense = wanted

    def dense_gradient(self) -> Tensor | None:
        """The parameter's own gradient, not a copy."""
        return self.parameter.grad

    def _mask_as_it_arrives(self, _: Tensor) -> None:
        # So that clipping by norm does not see the gradients of dead weights.
        if not self._wants_dense:
            self.mask_gradient()

    def mask_gradient(self) -> None:
        """Zeroes the dead part of the gradient, unless nothing has written to it since the last time."""
        gradient = self.parameter.grad
        if gradient is None or self.alive.everything:
            return
        if self._masked is not None:
            masked, *rest = self._masked
            if masked() is gradient and rest == [gradient._version, piece(gradient).data_ptr()]:
                return
        memory, bits = to_mask(gradient, self.bits)
        memory.mul_(bits)
        self._masked = weakref.ref(gradient), gradient._version, piece(gradient).data_ptr()

    def lend_gradient(self) -> None:
        """Zeroes the dead part of the gradient for the step of another optimizer; kept where an update expects it."""
        gradient = self.parameter.grad
        if self._wants_dense and gradient is not None:
            self._lent = gradient, gradient.clone()
        self.mask_gradient()

    def take_gradient_back(self) -> None:
        """Brings the dead part back after that step, if the gradient is still there."""
        lent, self._lent = self._lent, None
        if lent is not None and lent[0] is self.parameter.grad:
            gradient, before = map(piece, lent)
            gradient.copy_(torch.where(piece(self.mask), gradient, before))

    def accumulate_momentum(self) -> None:
        """m ← beta · m + g, in our own buffer; beta is the optimizer's momentum or first beta, else 0.9.

        What is not finite counts as 0: the step leaves a dead weight as it is, but m would never be finite again.
        """
        gradient = self.parameter.grad
        if self.momentum is None or gradient is None:
            return
        factor = self.holders.momentum_factor(self.parameter)
        step = piece(gradient.detach()).nan_to_num(0.0, 0.0, 0.0)
        if not self.dense_momentum:
            step *= self.bits
        momentum = piece(self.momentum).mul_(DEFAULT_MOMENTUM if factor is None else factor)
        momentum.add_(step, alpha=1 / self.holders.gradient_scale())

    def masked_tensors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The weight and its elementwise state with the bytes to multiply them by; other start values are filled in."""
        if self.alive.everything:
            return
        yield to_mask(self.parameter, self.bits)
        for value, initial in self.holders.elementwise_state(self.parameter):
            if initial != 0:
                # Of a complex number both parts start so.
                start = complex(initial, initial) if value.is_complex() else initial
                piece(value).masked_fill_(~piece(self.mask), start)
            elif is_quantised(piece(value)):
                erase_quantised(piece(value), piece(self.mask))
            else:
                yield to_mask(value, self.bits)
        if self.momentum is not None and not self.dense_momentum:
            yield to_mask(self.momentum, self.bits)

    def _plain_state(self) -> list[tuple[Tensor, float]]:
        return [
            (value.dequantize() if is_quantised(value) else value, start)
            for value, start in self.holders.elementwise_state(self.parameter)
        ]

    def evidence(self, gradient: Tensor | None, seed: int, step: int) -> Evidence:
        """What the scores of an update may look at."""
        momentum = self.momentum
        if momentum is None and Need.MOMENTUM in self.needs:
            momentum = self.holders.momentum(self.parameter)
        weight = self.parameter.detach()
        return evidence_for(weight)(self.layer, self.mask, weight, gradient, momentum, seed, step)

    def check(self, weight_steps: int) -> None:
        """The invariants of ``strict=True``: the number of alive weights; what is dead is 0, and so is its state."""
        count = int(whole(self.mask).sum())
        if count != self.alive.number:
            raise RuntimeError(
                f"the mask of '{self.layer.name}' has {count} alive weights after weight step {weight_steps}, expected "
                f"{self.alive.number}: masks are there to be read, something wrote to this one"
            )
        state = self._plain_state()
        tensors = [(self.parameter.detach(), 0.0, "weight")]
        # A start value other than 0 may be a learning rate, which a scheduler moves between two steps.
        for tensor, expected, what in tensors + [(value, start, "state") for value, start in state if start == 0]:
            broken = whole((tensor != expected) & ~self.mask).nonzero()
            if len(broken):
                where = tuple(broken[0].tolist())
                value = whole(tensor)[where].item()
                raise RuntimeError(
                    f"dead {what} of '{self.layer.name}' at {where} is {value}, expected {expected}, "
                    f"after weight step {weight_steps}: something other than an optimizer writes to the weights "
                    "(what was loaded needs the sparsifier's state too)"
                )

    def find_copy(self, model: nn.Module) -> Tensor | None:
        """The parameter of the same name and shape."""
        found = dict(model.named_parameters()).get(self.layer.name)
        return found if found is not None and tuple(found.shape) == self.layer.shape else None

    def mask_copy(self, model: nn.Module) -> None:
        """Multiplies it by the mask."""
        parameter = model.get_parameter(self.layer.name)
        mask = piece(cut_like(whole(self.mask).to(parameter.device), parameter))
        memory, bits = to_mask(parameter, mask.view(torch.uint8))
        memory.mul_(bits)

    def release(self) -> None:
        """Takes the hook off the parameter."""
        self._hook.remove()


def _probes(mask: Tensor) -> Tensor | None:
    """Flat places of dead weights, spread over a mask; None where looking would make a device wait."""
    if not mask.is_cpu or is_cut(mask):
        return None
    at = torch.arange(PROBES) * 2654435761 % mask.numel()  # Knuth's multiplicative hash: no stride of a shape
    return at[~mask.take(at)]
