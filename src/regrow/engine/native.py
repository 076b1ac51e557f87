"""The compiled extension: whether it is there, why not, and what it runs on."""

import functools
from typing import Any


@functools.cache
def _found() -> Any:
    try:
        from regrow.engine import _engine  # type: ignore[attr-defined, unused-ignore]  # where it is not built
    except ImportError as error:
        return error
    return _engine


def available() -> bool:
    """Whether the compiled extension is installed."""
    return not isinstance(_found(), ImportError)


def unavailable_reason() -> str | None:
    """Why there is no engine, and how to get it; None where there is one."""
    if available():
        return None
    return (
        f"regrow was installed without its compiled engine ({_found()}). "
        "Install a C++ compiler (g++ or clang++) and reinstall from the sources, in their folder: "
        "pip install --force-reinstall --no-deps ."
    )


def instruction_set() -> str:
    """The variant that new plans use: amx, avx512_bf16, avx512, avx2 or baseline; REGROW_ISA=avx2 forces one."""
    return str(extension().variant())


def extension() -> Any:
    """The extension module.

    Raises:
        RuntimeError: it was not built.
    """
    if not available():
        raise RuntimeError(unavailable_reason())
    return _found()
