"""Pickles of plain data and uint8 arrays, read without running anything that they ask for."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import torch
from torch import Tensor


class _Type:
    """Stands for numpy.dtype: only the letters of the type are kept."""

    def __init__(self, letters: object, *_: object) -> None:
        self.letters = letters.decode("latin1") if isinstance(letters, bytes) else letters

    def __setstate__(self, state: object) -> None:
        """Byte order, names and flags: nothing of it matters to bytes."""


class _Array:
    """Stands for numpy.ndarray: keeps what the pickle says, and makes a tensor of it once it has been checked."""

    tensor: Tensor | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), _Type(letters="u1"), order, bytes(content)) if all(
                isinstance(size, int) and size >= 0 for size in shape
            ) and math.prod(shape) == len(content):
                flat = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0).byte()
                self.tensor = flat.view(shape[::-1]).permute(*range(len(shape))[::-1]) if order else flat.view(shape)
            case _:
                raise pickle.UnpicklingError("it holds an array that is not of whole bytes")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("it encodes text in another way than latin1")
    return text.encode("latin1")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}
"""The only names a pickle may ask for, and the stand-ins it gets: none of numpy's own code meets its arguments."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no plain data") from None


def read_pickle(content: bytes, what: str) -> Any:
    """The numbers, bytes, text, lists, dicts and uint8 arrays (as tensors) of a pickle, of Python 2 or 3.

    Text of Python 2 comes as bytes; the keys of dicts always come as text.

    Args:
        content: the pickle.
        what: its name, for messages.

    Raises:
        ValueError: it is broken, or asks for anything but plain data; nothing of it has been run.
    """
    try:
        _check_memo(content)
        return _plain(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    except Exception as error:  # a broken pickle may raise anything
        reason = str(error) or type(error).__name__
        raise ValueError(f"{what} is not a pickle of plain data ({reason}): it is refused, fetch it again") from None


def _check_memo(content: bytes) -> None:
    """Refuses numbers of remembered values that no honest pickle reaches: Python makes a table up to the largest."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name.endswith("PUT") and not 0 <= int(argument or 0) <= len(content):
            raise pickle.UnpicklingError(f"it remembers a value as number {argument}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key.decode("latin1") if isinstance(key, bytes) else key: _plain(content) for key, content in value.items()
        }
    if isinstance(value, _Array):
        if value.tensor is None:
            raise pickle.UnpicklingError("it holds an array without content")
        return value.tensor
    return value
