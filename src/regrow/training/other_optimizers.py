"""Steps of other optimizers that hold attached weights: a second one, one inside a wrapper, a wrapper around."""

import warnings
from typing import Any
from weakref import WeakSet, ref

from torch.optim import Optimizer

from regrow.storage import optimizers
from regrow.storage.optimizer_holders import Holders
from regrow.storage.optimizer_state import obstacle
from regrow.storage.optimizer_steps import StepUnderWay, with_closure
from regrow.storage.stored_layer import Storage
from regrow.training.attached_layers import AttachedLayers


class OtherOptimizers:
    """Keeps dead weights dead, and state where its weights are, whoever steps them.

    Args:
        holders: the optimizers that are known; one that steps the weights for the first time joins them.
        storage: of the layers.
        weight_step: that of the attached optimizer.
        attached: whose weights they are.
    """

    def __init__(self, holders: Holders, storage: Storage, weight_step: StepUnderWay, attached: AttachedLayers) -> None:
        self._holders, self._storage, self._weight_step, self._attached = holders, storage, weight_step, attached
        self._looked_at = WeakSet[Optimizer]()
        self._latest: ref[Optimizer] | None = None
        self._warned = False

    def weight_step_begins(self) -> None:
        """The attached optimizer steps itself."""
        self._latest = None

    def before_step_of(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        """Masks the gradients of any step of the weights but the weight step, and what that is a part of."""
        if optimizer is self._holders.stepper or not (held := self._holders.held_by(optimizer)):
            return None
        settled = not self._weight_step and not optimizers.only_fills_state(optimizer)
        if settled:
            self._attached.refuse_strays()
        if not self._holders.knows(optimizer):
            self._take_in(optimizer)
            if settled:
                self._attached.zero_dead([each.name for each in held])
        if self._weight_step or self._holders.encloses(optimizer):
            return None
        self._warn_if_it_replaces(optimizer)

        def lend() -> None:
            self._attached.check()
            layers = self._attached.by_name()
            for each in held:
                layers[each.name].lend_gradient()

        return with_closure(args, kwargs, lend)

    def after_step_of(self, optimizer: Optimizer) -> None:
        """Zeroes what such a step wrote to dead weights and to their state."""
        if optimizer is self._holders.stepper or not (held := self._holders.held_by(optimizer)) or self._weight_step:
            return
        layers = self._attached.by_name()
        for each in held:
            layers[each.name].take_gradient_back()
        odd = self.odd_state(optimizer)
        if not optimizers.only_fills_state(optimizer):
            self._attached.zero_dead([each.name for each in held])
        self._attached.check()
        if odd:
            raise RuntimeError(odd)

    def odd_state(self, optimizer: Optimizer) -> str:
        """What is wrong, after an optimizer's first step, with the state that it keeps by now; else empty."""
        if optimizer in self._looked_at:
            return ""
        found = self._holders.obstacle(self._storage.name == "compact")
        if not found:
            self._looked_at.add(optimizer)
        return found

    def refuse_odd_state(self) -> None:
        """Raises RuntimeError where an optimizer keeps state that the next update would leave behind."""
        found = self._holders.obstacle(self._storage.name == "compact")
        if found:
            raise RuntimeError(found)

    def _take_in(self, optimizer: Optimizer) -> None:
        optimizers.check(optimizer)
        self._storage.check_optimizer(optimizer)
        found = obstacle(optimizer, self._holders.held_by(optimizer), self._storage.name == "compact")
        if found:
            raise RuntimeError(f"another optimizer steps sparsified weights: {found}")
        self._holders.add(optimizer)
        self._storage.take_in(optimizer)
        self._attached.listen_to_loads(optimizer)

    def _warn_if_it_replaces(self, optimizer: Optimizer) -> None:
        again, self._latest = self._latest is not None and self._latest() is optimizer, ref(optimizer)
        if again and not self._warned and self._holders.replaces(optimizer):
            self._warned = True
            warnings.warn(
                f"this {type(optimizer).__name__} steps all weights of the {type(self._holders.stepper).__name__} that "
                "a sparsifier is attached to, which does not step itself: dead weights stay 0, but no update comes. "
                "If it takes the place of the other: keep sparsifier.state_dict(), call sparsifier.detach(), attach to "
                "this one, and load_state_dict",
                stacklevel=6,
            )
