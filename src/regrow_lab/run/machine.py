"""What a run runs on."""

from __future__ import annotations

import ctypes
import functools
import gc
import platform
import re
import resource
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from regrow_lab.run import data_parallel

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
    """The device, refused with ValueError where there is none of that name that holds values."""
    remedy = "give cpu, or cuda where there is one"
    try:
        with warnings.catch_warnings(action="ignore"):  # of names that torch has given up
            device = torch.device(name)
    except RuntimeError:  # its text lists every device that torch has ever known
        raise ValueError(f"no device {name!r} on this machine: {remedy}") from None
    if device.type == "meta":
        raise ValueError(f"the device {name!r} holds shapes and no values, so nothing is trained there: {remedy}")
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # torch raises what each kind of device happens to meet first
        raise ValueError(f"no device {name!r} on this machine ({_why_not(error)}): {remedy}") from None
    return device


def _why_not(error: Exception) -> str:
    """What torch says of a device that there is not, where that is for people: a sentence of a line."""
    sentence = str(error).partition("\n")[0].partition(". ")[0]
    of_torch = isinstance(error, (NotImplementedError, ImportError)) or "INTERNAL ASSERT" in sentence
    return "this torch was built without it" if of_torch or len(sentence) > 100 else sentence


def gains_from_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16, so that autocast is faster than float32 for all but tiny nets.

    GPUs of compute capability 8.0 and above; CPUs with AMX or AVX-512's bfloat16 products.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # torch's own, which older versions lack in part
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def forget_peak_memory(device: torch.device) -> int:
    """Has the peak of memory counted from here on; returns the bytes that are held now, by data and by torch itself.

    What a run takes is its peak less these: so it is not charged with the runs before it in its process. On a CPU that
    is Linux's affair; elsewhere the peak stays that of the whole process.
    """
    _use_torch_once()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _of_process("VmRSS") or 0


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's peak allocation, or for the CPU the peak of the process, since it was last forgotten."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _of_process("VmHWM") or usage


def _of_process(field: str) -> int | None:
    """Bytes that Linux gives for this process; None where there is no Linux."""
    with suppress(OSError):
        found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else None
    return None


@functools.cache
def _use_torch_once() -> None:
    """One training step of a tiny net: at first use torch loads and allocates some 100 MiB, which are no run's own."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
        net.append(torch.nn.Linear(72, 2))
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=True)
        torch.nn.functional.cross_entropy(net(torch.ones(2, 1, 8, 8)), torch.tensor([0, 1])).backward()
        optimizer.step()


def _has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def describe(device: torch.device) -> str:
    """The device in words."""
    processes = f", {data_parallel.world()} processes" if data_parallel.world() > 1 else ""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}{processes}"
    return f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} thread{processes}"
