"""What a run runs on."""

from __future__ import annotations

import platform
import resource
import sys

import torch

from regrow_lab import ranks


def device_named(name: str) -> torch.device:
    """The device, refused with ValueError where there is none of that name."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"no device {name!r} on this machine ({reason}): give cpu, or cuda where there is one"
        ) from None
    return torch.device(name)


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's peak allocation, or for the CPU the peak of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe(device: torch.device) -> str:
    """The device in words."""
    processes = f", {ranks.world()} processes" if ranks.world() > 1 else ""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}{processes}"
    return f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} thread{processes}"
