"""The dense gradient of a compact weight, as it comes in the backward passes before a topology update."""

import torch
from torch import Tensor, nn

from regrow.storage import on_gradient


class DenseGradient:
    """Sums over backward passes as the parameter's own ``.grad`` does.

    A pass counts once its gradient has arrived in ``.grad``, and the first since gradients were zeroed starts afresh.
    One that hands its gradients out (``torch.autograd.grad``, ``backward(inputs=…)`` of others) counts only where no
    pass arrives at all: then the loop fills ``.grad`` by itself.

    Args:
        values: the parameter of the alive entries.
    """

    def __init__(self, values: nn.Parameter) -> None:
        self.values = values
        self._arrived: Tensor | None = None
        self._passing: dict[int, tuple[Tensor, bool]] = {}  # backward pass → its gradient, and whether it starts afresh
        self._hook = on_gradient(values, self._arrive)

    def add(self, gradient: Tensor, ours: bool = False) -> None:
        """What a use of the weight brings in the backward pass under way.

        Args:
            gradient: of the dense weight, of its shape.
            ours: nobody else holds its memory, which may be kept.
        """
        number = torch._C._current_graph_task_id()
        before = self._passing.get(number)
        if before is not None:
            before[0].add_(gradient)
            return
        own = self.values.grad
        afresh = own is None or not bool(own.any())
        self._passing[number] = gradient.detach() if ours else gradient.detach().clone(), afresh

    def _arrive(self, _: Tensor) -> None:
        gradient, afresh = self._passing.pop(torch._C._current_graph_task_id(), (None, False))
        if gradient is None:
            return
        if self._arrived is None or afresh:
            self._arrived = gradient
        else:
            self._arrived += gradient

    def value(self) -> Tensor | None:
        """The sum so far; None where no pass has brought any."""
        if self._arrived is not None or not self._passing:
            return self._arrived
        first, *others = (gradient for gradient, _ in self._passing.values())
        return sum(others, first)

    def next_step(self) -> None:
        """Forgets what did not arrive."""
        self._passing.clear()

    def release(self) -> None:
        """Listens no longer."""
        self._hook.remove()
