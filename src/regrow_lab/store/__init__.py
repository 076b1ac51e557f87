"""Stored runs on the disk: a folder a run while it trains, and what of it stays.

Everything that reads results gets them from here. May import :mod:`regrow_lab.config` alone; never imports torch.
"""

from regrow_lab.store.frames import epochs, frame

__all__ = ["epochs", "frame"]
