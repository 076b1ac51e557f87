"""Sparse nets on disk: a safetensors file that holds the alive values, where they stand, and everything else as it is.

A compact weight ``name`` is two tensors: ``name.values`` (nnz,) and either ``name.mask``, one bit a weight, or, where
that is smaller (below one alive weight in 32), ``name.indices`` (nnz,) int32. Dense shapes and a checksum are in the
metadata.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from regrow.checksummed_files import digest_of
from regrow.compaction.compact_modules import compact_layers
from regrow.compaction.compact_weight import indices_of, scatter
from regrow.compaction.convert import check_unattached, compact, owners, weights_of
from regrow.layers import unwrap
from regrow.storage.mask_bits import pack, unpack
from regrow_files import check_readable, json_of, shown

FORMAT = "regrow compact 2"
WITHOUT_CHECKSUM = "regrow compact 1"
PARTS = ("values", "mask", "indices")


@dataclass(frozen=True)
class FileSize:
    """Bytes of a sparse file, and of the same tensors written dense."""

    file: int
    dense: int

    def __str__(self) -> str:
        return f"{self.file:,} bytes, {self.file / self.dense:.3f} of the {self.dense:,} bytes of the dense tensors"


def save_compact(model: nn.Module, path: str | os.PathLike[str]) -> FileSize:
    """Writes a compact model's weights, other parameters and buffers to a safetensors file.

    Args:
        model: one with compact layers (attached with ``storage="compact"``, or made by :func:`regrow.compact`).
        path: of the file.

    Returns:
        How large the file is.

    Raises:
        ValueError: no layer of the model is compact.
    """
    model = unwrap(model)
    layers = compact_layers(model)
    if not layers:
        raise ValueError("no layer of this model is compact: call regrow.compact(model) first")
    tensors, shapes = {}, {}
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for name, layer in layers.items():
        weight = layer.compact
        tensors[f"{name}.values"] = layer.weight.detach()
        shapes[name] = list(weight.shape)
        if weight.num_alive * 32 < math.prod(weight.shape):
            tensors[f"{name}.indices"] = weight.indices
        else:
            tensors[f"{name}.mask"] = pack(weight.mask)
    rest = {name: tensor for name, tensor in state.items() if name not in layers}
    # Tied tensors share memory, which the format does not have: each name gets its own copy.
    everything = {name: tensor.detach().contiguous().clone() for name, tensor in (tensors | rest).items()}
    shapes_text = json.dumps(shapes)
    metadata = {"format": FORMAT, "shapes": shapes_text, "blake2b": digest_of(everything, shapes_text)}
    _safetensors().torch.save_file(everything, os.fspath(path), metadata)
    dense = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return FileSize(os.path.getsize(path), dense)


def load_compact(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Fills a model of the same architecture from a file of :func:`save_compact`, and makes it compact.

    Args:
        model: dense, as its builder made it. Its tensors are overwritten.
        path: of the file.

    Returns:
        The same model.

    Raises:
        ValueError: the file is damaged or of another model, or a sparsifier is attached; nothing is changed then.
            Nothing in it is executed.
    """
    model = unwrap(model)
    if compact_layers(model):
        raise ValueError("this model has compact layers already: load into a dense one (regrow.to_dense makes it so)")
    check_unattached(model)
    tensors, shapes = _read(path)
    expected = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    masks, state = {}, {name: tensor for name, tensor in tensors.items() if not _part_of(name, shapes)}
    for name, shape in shapes.items():
        found = expected.get(name)
        here = tuple(found.shape) if found is not None else "no such weight"
        _expect(shape == here, f"'{name}' is of shape {shape} in the file, the model has {here}")
        parts = {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}
        indices = _indices(name, parts, shape)
        masks[name] = scatter(torch.ones(len(indices), dtype=torch.bool), indices, shape)
        state[name] = scatter(parts["values"], indices, shape)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    _expect(not missing, f"it lacks {', '.join(missing[:3])}")
    _expect(not extra, f"it has {', '.join(extra[:3])} besides")
    for name, tensor in state.items():
        here, dtype = tuple(expected[name].shape), expected[name].dtype
        _expect(tuple(tensor.shape) == here, f"'{name}' has shape {tuple(tensor.shape)}, the model's has {here}")
        _expect(tensor.dtype == dtype, f"'{name}' is {tensor.dtype}, the model's is {dtype}")
    weights_of(model, masks)
    unfit = masks.keys() - owners(model).keys()
    _expect(not unfit, f"{', '.join(sorted(unfit)[:3])} of this model cannot be compact")
    model.load_state_dict(state, strict=False)  # what is no tensor is not in the file
    return compact(model, masks)


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    library = _safetensors()
    check_readable(path)
    try:
        with library.safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = json_of(metadata.get("shapes", "null").encode())
    except Exception as error:  # a broken file may raise anything
        reason = shown(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise ValueError(f"{os.fspath(path)} is no sound safetensors file: {reason}") from error
    form = metadata.get("format")
    _expect(form in (FORMAT, WITHOUT_CHECKSUM), f"its format is {form!r}, '{FORMAT}' was expected")
    if form == FORMAT:
        added_up = digest_of(tensors, metadata.get("shapes", ""))
        if metadata.get("blake2b") != added_up:
            found_out = "do not add up to its checksum" if "blake2b" in metadata else "have no checksum beside them"
            raise ValueError(f"{os.fspath(path)} is damaged: its tensors {found_out}; save it again")
    sound = isinstance(found, dict) and all(
        isinstance(shape, list) and shape and all(type(size) is int and 0 < size < 2**31 for size in shape)
        for shape in found.values()
    )
    _expect(sound, "its shapes are not lists of positive numbers")
    return tensors, {name: tuple(shape) for name, shape in found.items()}


def _part_of(name: str, shapes: Mapping[str, Any]) -> bool:
    owner, _, part = name.rpartition(".")
    return owner in shapes and part in PARTS


def _indices(name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Positions of a weight's values, each of them within the weight."""
    size = math.prod(shape)
    _expect(parts.keys() in ({"values", "mask"}, {"values", "indices"}), f"'{name}' has the parts {sorted(parts)}")
    values = parts["values"]
    _expect(values.dim() == 1 and values.is_floating_point(), f"the values of '{name}' are no list of numbers")
    if "mask" in parts:
        packed = parts["mask"]
        sound = packed.dtype == torch.uint8 and packed.shape == (-(-size // 8),)
        _expect(sound, f"the mask of '{name}' is not {-(-size // 8)} bytes")
        indices = indices_of(unpack(packed, shape))
    else:
        indices = parts["indices"]
        _expect(indices.dim() == 1 and indices.dtype in (torch.int32, torch.int64), f"the indices of '{name}' are odd")
        inside = len(indices) > 0 and int(indices[0]) >= 0 and int(indices[-1]) < size
        _expect(
            inside and bool((indices[1:] > indices[:-1]).all()),
            f"the indices of '{name}' are not ascending positions in a weight of {size:,}",
        )
    _expect(len(indices) == len(values) > 0, f"'{name}' has {len(values)} values for {len(indices)} alive weights")
    return indices


def _expect(condition: bool, found: str) -> None:
    if not condition:
        raise ValueError(f"this file does not fit: {shown(found)}; it is damaged or was saved from another model")


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("sparse files need the safetensors package: pip install safetensors") from error
    return safetensors
