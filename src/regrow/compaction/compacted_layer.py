"""A sparsified weight in compact storage: what the sparsifier asks of it, on values and indices."""

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.compaction.compact_modules import CompactLayer, make_compact, make_dense
from regrow.compaction.compact_weight import gather, indices_of, scatter
from regrow.compaction.dense_gradient import BackwardPasses, DenseGradient
from regrow.compaction.positions import Positions
from regrow.parts.scores import Evidence, Need
from regrow.storage import optimizers
from regrow.storage.masked_layer import DEFAULT_MOMENTUM, MaskedLayer
from regrow.storage.stored_layer import in_words


class CompactedLayer:
    """Takes over from a masked layer: the same module, parameter, counts and optimizer, cut down to what is alive.

    Args:
        masked: the layer as it was kept so far.
        module: the layer's module, one that has a compact form.
        passes: shared by the compacted layers of a model.
    """

    def __init__(self, masked: MaskedLayer, module: nn.Module, passes: BackwardPasses) -> None:
        assert not masked.dense_momentum, "dense momentum has no compact form"
        self.layer, self.parameter, self.alive = masked.layer, masked.parameter, masked.alive
        self.holders, self.needs, self.passes = masked.holders, masked.needs, passes
        self._own = masked.momentum
        self._state_loaded = masked.state_loaded
        masked.release()
        mask, pattern = masked.mask, masked.mask
        if not masked.settled:
            pattern = pattern | (self.parameter.detach() != 0)
        if masked.state_loaded:
            for value, start in self.holders.elementwise_state(self.parameter):
                pattern = pattern | (value != start)
        self.weight = make_compact(module, pattern, [value for value, _ in self.state()])
        self._positions = self.weight.positions
        if self.weight.num_alive > self.alive.number:
            self._positions = Positions.of(indices_of(mask), self.layer.shape)
        assert isinstance(module, CompactLayer)
        self.module, self.weight.keeper = module, self

    @property
    def mask(self) -> Tensor:
        """Made anew from the indices."""
        return scatter(torch.ones(len(self._positions), dtype=torch.bool), self._positions.indices, self.layer.shape)

    @property
    def momentum(self) -> Tensor | None:
        """The own buffer, made dense."""
        return None if self._own is None else self.weight.dense(self._own)

    def set_mask(self, mask: Tensor, step: int) -> None:
        """Moves the entries that stay; the newborn have value 0 and fresh state."""
        self.weight.set_mask(mask, self.state())
        self._positions = self.weight.positions
        self.alive.change(self.weight.num_alive, step)

    def load_mask(self, mask: Tensor, step: int) -> None:
        """Beside the mask the pattern holds what is not 0 in the weight, and in state that was loaded."""
        self._positions = Positions.of(indices_of(mask), self.layer.shape)
        self.alive.change(len(self._positions), step)
        self.make_room(self._weight_alive())

    def make_room(self, alive: Tensor) -> None:
        """Before a dense weight is loaded."""
        self._fit(alive, *self._loaded_state(self.holders))

    def load_state(self, state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's dense state of this weight that is being loaded, cut to a pattern that holds all of it."""
        others = [each for each in self.holders if each is not optimizer]
        dense = {
            key: value.detach().cpu()
            for key, value in state.items()
            if isinstance(value, Tensor) and tuple(value.shape) == self.weight.shape
        }
        starts = {key: optimizers.initial_value(optimizer, self.parameter, key) for key in dense}
        loaded = (value != starts[key] for key, value in dense.items())
        self._fit(self._weight_alive(), *loaded, *self._loaded_state(others))
        return {**state, **{key: gather(value, self.weight.indices) for key, value in dense.items()}}

    def _loaded_state(self, of: Iterable[Optimizer]) -> Iterator[Tensor]:
        """Where state is not what its optimizer starts it with, if any was loaded."""
        if self._state_loaded:
            for optimizer in of:
                for value, start in optimizers.elementwise_state(optimizer, self.parameter):
                    yield self.weight.dense(value, start) != start

    def state(self) -> list[tuple[Tensor, float]]:
        """All that has one number an alive weight, beside the weight."""
        own = [] if self._own is None else [(self._own, 0.0)]
        return [*self.holders.elementwise_state(self.parameter), *own]

    def _weight_alive(self) -> Tensor:
        return self.weight.dense(self.weight.values.detach()) != 0

    def _fit(self, *alive: Tensor) -> None:
        """Gives the weight the least pattern that holds the mask and these: the mask's own where they are within it."""
        pattern = reduce(or_, alive, self.mask)
        if not torch.equal(pattern, self.weight.mask):
            self.weight.set_mask(pattern, self.state())
        if self.weight.num_alive == len(self._positions):
            self.weight.positions = self._positions

    @property
    def suspect(self) -> bool:
        """Whether a load has made the pattern larger than the mask."""
        return self.weight.positions is not self._positions

    def strays(self) -> str | None:
        """Counts them."""
        outside = ~torch.isin(self.weight.indices, self._positions.indices)
        values = self.weight.values.detach()
        state = 0
        if self._state_loaded:
            found = self.holders.elementwise_state(self.parameter)
            state = max((int(value[outside].count_nonzero()) for value, start in found if start == 0), default=0)
        return in_words(int(values[outside].count_nonzero()), int(values.count_nonzero()), state)

    def was_loaded(self) -> None:
        """The optimizer's state counts among the strays."""
        self._state_loaded = True

    def settle(self) -> None:
        """State is the mask's own again."""
        self._state_loaded = False

    def load_momentum(self, momentum: Tensor) -> None:
        """The alive entries of a saved buffer."""
        if self._own is not None:
            self._own.copy_(gather(momentum, self.weight.indices))

    def expect_dense_gradient(self, wanted: bool) -> None:
        """Whether the coming backward passes sum up the dense gradient beside that of the values."""
        kept = self.weight.dense_gradient
        if wanted and kept is None:
            self.weight.dense_gradient = DenseGradient(self.parameter, self.weight.shape, self.layer.name, self.passes)
        elif wanted and kept is not None:
            kept.next_step()
        elif kept is not None:
            kept.release()
            self.weight.dense_gradient = None

    def dense_gradient(self) -> Tensor | None:
        """That of what ``.grad`` holds, which the alive weights have itself; over all ranks where there are several.

        Raises:
            ValueError: ``.grad`` is nothing that the backward passes tell the dense gradient of.
        """
        own, kept = self.parameter.grad, self.weight.dense_gradient
        gradient = None if kept is None else kept.value()
        if own is None or gradient is None:
            return None
        gradient.view(-1)[self.weight.indices.long()] = own.detach().to(gradient.dtype)
        return gradient

    def mask_gradient(self) -> None:
        """Nothing to do: a dead weight has no gradient."""

    def lend_gradient(self) -> None:
        """Nothing to do either."""

    def take_gradient_back(self) -> None:
        """Nothing was taken."""

    def accumulate_momentum(self) -> None:
        """m ← beta · m + g, of the alive weights."""
        if self._own is None or self.parameter.grad is None:
            return
        factor = self.holders.momentum_factor(self.parameter)
        self._own.mul_(DEFAULT_MOMENTUM if factor is None else factor)
        self._own.add_(self.parameter.grad.detach(), alpha=1 / self.holders.gradient_scale())

    def masked_tensors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """None, but the pattern is the mask's again."""
        if self.suspect:
            self._fit()
        return iter(())

    def evidence(self, gradient: Tensor | None, seed: int, step: int) -> Evidence:
        """Everything in dense form, for the time of the update."""
        momentum = self.momentum
        if momentum is None and Need.MOMENTUM in self.needs:
            momentum = self.weight.dense(self.holders.momentum(self.parameter))
        weight = self.weight.dense(self.parameter.detach())
        return Evidence(self.layer, self.mask, weight, gradient, momentum, seed, step)

    def check(self, weight_steps: int) -> None:
        """The invariants of ``strict=True``: one value and one number of each state for each index, ascending."""
        indices, size = self.weight.indices, self.layer.size
        ascending = bool((indices[1:] > indices[:-1]).all()) and int(indices[0]) >= 0 and int(indices[-1]) < size
        sizes = {value.numel() for value, _ in self.holders.elementwise_state(self.parameter)}
        counted = len(self._positions) == self.alive.number
        if not ascending or not counted or {self.parameter.numel(), *sizes} != {len(indices)}:
            raise RuntimeError(
                f"'{self.layer.name}' has {len(indices)} indices, {self.parameter.numel()} values and state of "
                f"{sorted(sizes)} after weight step {weight_steps}: something other than the sparsifier writes to them"
            )

    def find_copy(self, model: nn.Module) -> Tensor | None:
        """The compact layer of the same name and dense shape in a copy, or a dense one."""
        module, name = _owner(model, self.layer.name)
        if isinstance(module, CompactLayer):
            return module.weight if module.compact.shape == self.layer.shape else None
        found = None if module is None else module._parameters.get(name)
        return found if found is not None and tuple(found.shape) == self.layer.shape else None

    def mask_copy(self, model: nn.Module) -> None:
        """Gives a compact copy this pattern, and zeroes the dead weights of a dense one."""
        module, name = _owner(model, self.layer.name)
        assert module is not None
        if module is self.module:
            self._fit()
        elif isinstance(module, CompactLayer):
            if not torch.equal(module.compact.indices, self.weight.indices):
                module.compact.set_mask(self.mask)
        else:
            module.get_parameter(name).mul_(self.mask)

    def release(self) -> None:
        """Takes its hook off the parameter, where an update is due."""
        self.expect_dense_gradient(False)

    def make_dense(self) -> None:
        """Gives the module its dense class and weight back, the optimizer its dense state."""
        make_dense(self.module, list(self.holders.elementwise_state(self.parameter)))


def _owner(model: nn.Module, name: str) -> tuple[nn.Module | None, str]:
    """The module that holds a parameter, and the parameter's name there."""
    path, _, last = name.rpartition(".")
    return dict(model.named_modules()).get(path), last
