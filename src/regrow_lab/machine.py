"""What a run runs on."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from regrow_lab import ranks

KEPT = {-1: 2**31 - 1, -2: 2**26, -3: 2**31 - 1}
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD, in bytes."""


def take_threads(threads: int) -> None:
    """Sets this process up to train on the CPU with so many threads.

    glibc hands the memory of every large tensor back to the system when it is freed, and the next step has it cleared
    page by page again: a fifth of a step of a small convolutional net. So it is kept.
    """
    torch.set_num_threads(threads)
    if _has_glibc():
        libc = ctypes.CDLL(None)
        for setting, size in KEPT.items():
            libc.mallopt(setting, size)


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


def gains_from_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16, so that autocast is faster than float32 for all but tiny nets.

    GPUs of compute capability 8.0 and above; CPUs with AMX or AVX-512's bfloat16 products.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # torch's own, which older versions lack in part
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def forget_peak_memory(device: torch.device) -> None:
    """Has the peak of memory counted from here on, so that a run is not charged with those before it in its process.

    On a CPU that is Linux's affair; elsewhere the peak stays that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's peak allocation, or for the CPU the peak of the process, since it was last forgotten."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found is not None:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def describe(device: torch.device) -> str:
    """The device in words."""
    processes = f", {ranks.world()} processes" if ranks.world() > 1 else ""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}{processes}"
    return f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} thread{processes}"
