"""Which sparsifiers are attached at the moment: what must not be done to an attached model asks here."""

from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakSet

from torch import nn
from torch.optim import Optimizer

from regrow.storage.optimizer_steps import unwatch, watchers


class Attachment(Protocol):
    """What is known here of a sparsifier."""

    @property
    def stepper(self) -> Optimizer:
        """The optimizer whose step is the weight step."""

    def parameters(self) -> Sequence[nn.Parameter]:
        """The weights that are attached to."""


_attached = WeakSet[Attachment]()


def attachments() -> list[Attachment]:
    """Those alive and not detached."""
    return list(_attached)


def is_attached(attachment: Attachment) -> bool:
    """Whether it is one of them."""
    return attachment in _attached


def enter(attachment: Attachment) -> None:
    """From now on it is."""
    _attached.add(attachment)


def leave(attachment: Attachment) -> None:
    """From now on it is not."""
    _attached.discard(attachment)


def forgets_new() -> Callable[[], None]:
    """What forgets the sparsifiers that are attached from now on, wherever their making has come to."""
    known, watching = set(_attached), set(watchers())

    def forget() -> None:
        _attached.intersection_update(known)
        for watcher in set(watchers()) - watching:
            unwatch(watcher)

    return forget
