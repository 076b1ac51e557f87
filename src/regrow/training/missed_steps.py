"""Training that never calls ``step()`` of the attached optimizer is told so: no topology update would ever come."""

import warnings

from torch import Tensor, nn

MOST = 10
"""So many backward passes with another weight each, and no step between, are training by something else."""


class MissedSteps:
    """Counts the backward passes that found a weight changed since the last, while the attached optimizer stood still.

    Args:
        parameter: one of the attached weights.
        optimizer: name of the attached optimizer's class.
    """

    def __init__(self, parameter: nn.Parameter, optimizer: str) -> None:
        self._parameter, self._optimizer = parameter, optimizer
        self._seen: int | None = None
        self._changed, self._warned = 0, False

    def stepped(self) -> None:
        """The attached optimizer steps."""
        self._seen, self._changed = None, 0

    def gradient_came(self, _: Tensor) -> None:
        """A backward pass has reached the weight."""
        if self._warned or self._parameter.is_inference():
            return
        version = self._parameter._version
        self._changed += self._seen is not None and self._seen != version
        self._seen = version
        if self._changed >= MOST:
            self._warned = True
            warnings.warn(
                f"{MOST} backward passes have found other weights each, and step() of the {self._optimizer} that a "
                "sparsifier is attached to was never called, so that no topology update comes: attach to the optimizer "
                "whose step() trains the weights (one for all of them), or call that one's",
                stacklevel=2,
            )
