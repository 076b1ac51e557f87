"""Trained sparse nets made compact for inference, and back."""

import copy
import math
import warnings
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regrow.compaction.capture import graph_forward
from regrow.compaction.compact_modules import compact_layers, make_compact, make_dense, obstacle, obstacles
from regrow.compaction.compact_weight import CompactWeight
from regrow.compaction.dense_copies import make_plain
from regrow.layers import unwrap
from regrow.storage.attachments import attachments
from regrow.tied_weights import identity, touch


def compact(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Leaves only the alive weights of a trained model, in place, and runs it with the sparse kernels.

    Args:
        model: a dense module, in either mode.
        masks: parameter name → tensor of the weight's shape, as ``sparsifier.masks``, alive where it is not 0; None
            takes what is not 0 in every convolution and linear layer that is at most half alive. What has no compact
            form (grouped convolutions, attention, …) keeps its dense weight, 0 where the mask says dead.

    Returns:
        The same model. Its ``state_dict`` has dense names and shapes; :func:`to_dense` undoes it.

    Raises:
        ValueError: a mask names no weight, or one that is compact already, has another shape or no alive entry; or a
            sparsifier is attached. Nothing is written then.
    """
    model = unwrap(model)
    check_unattached(model)
    with torch.inference_mode(False):  # else the values could never be trained again
        able = owners(model)
        chosen = _found(able) if masks is None else {name: mask.to(torch.bool) for name, mask in masks.items()}
        weights = weights_of(model, chosen)
        modules = {name: able[name] for name in weights if name in able}
        with torch.no_grad():
            for name in weights.keys() - modules.keys():
                weights[name].masked_fill_(~chosen[name].to(weights[name].device), 0)
        make_plain(model)
        for name, module in modules.items():
            make_compact(module, chosen[name])
        graph_forward.install(model)
    return model


def check_unattached(model: nn.Module) -> None:
    """Raises ValueError where a sparsifier holds a weight of the model."""
    held = [parameter for each in attachments() for parameter in each.parameters()]
    if touch(held, model.parameters()):
        raise ValueError(
            "a sparsifier is attached to this model: call its detach() first (to train compact, attach with "
            "storage='compact')"
        )


def to_dense(model: nn.Module) -> nn.Module:
    """Gives every compact layer its dense weight back, in place; dead weights are 0. Returns the same model.

    Raises:
        ValueError: a sparsifier is attached to it.
    """
    model = unwrap(model)
    layers = compact_layers(model)
    if any(layer.compact.keeper is not None for layer in layers.values()):
        raise ValueError(
            "a sparsifier is attached to this model: its detach() makes model and optimizer dense (or pass a deepcopy)"
        )
    graph_forward.remove(model)
    make_plain(model)
    for layer in layers.values():
        make_dense(layer)
    return model


def dense_copy(model: nn.Module) -> nn.Module:
    """A dense copy of a model with compact layers; a dense model itself."""
    if not compact_layers(model):
        return model
    memo, first = dict[int, Any](), dict[Hashable, nn.Parameter]()
    for parameter in model.parameters():  # torch copies two over the same memory apart
        known = first.setdefault(identity(parameter), parameter)
        memo[id(parameter)] = copy.deepcopy(known, memo)
    return to_dense(copy.deepcopy(model, memo))


def sparse_tensors(
    model: nn.Module, layout: Literal["csr", "bsr"] = "csr", block: tuple[int, int] = (4, 1)
) -> dict[str, Tensor]:
    """Copies of a model's compact weights as torch sparse tensors, parameter name → (out, in · kernel) matrix.

    Args:
        model: one with compact layers.
        layout: "csr", or "bsr" in blocks that must divide the matrix.
        block: (outputs, inputs) of a block.

    Raises:
        ValueError: no layer is compact, the layout is unknown, or the blocks do not divide a matrix.
    """
    if layout not in ("csr", "bsr"):
        raise ValueError(f"layout is {layout!r}; expected 'csr' or 'bsr'")
    if not isinstance(block, tuple) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise ValueError(f"block is {block!r}; expected (outputs, inputs), two whole numbers of at least 1")
    layers = compact_layers(unwrap(model))
    if not layers:
        raise ValueError("no layer of this model is compact: call regrow.compact(model) first")
    return {name: _sparse(name, layer.weight, layer.compact, layout, block) for name, layer in layers.items()}


def _sparse(name: str, values: Tensor, weight: CompactWeight, layout: str, block: tuple[int, int]) -> Tensor:
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    at = weight.indices.long()
    counts = torch.bincount(at // columns, minlength=rows)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|BSR|invariant)", category=UserWarning)
        # An alive weight may be 0, and stays in the pattern.
        alive = values.detach().clone()
        csr = torch.sparse_csr_tensor(starts, at % columns, alive, (rows, columns), check_invariants=True)
        if layout == "csr":
            return csr
        if rows % block[0] or columns % block[1]:
            raise ValueError(
                f"blocks {block} do not divide '{name}', a matrix of {rows} x {columns}: take layout='csr'"
            )
        return csr.to_sparse_bsr(block)


def _found(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    masks = {}
    for name, module in modules.items():
        weight = module.weight
        assert isinstance(weight, Tensor)
        mask = weight.detach() != 0
        if 0 < int(mask.sum()) <= mask.numel() // 2:
            masks[name] = mask
    return masks


def owners(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose weight can be compact, by its name."""
    elsewhere = obstacles(model)
    return {
        f"{path}.weight" if path else "weight": module
        for path, module in model.named_modules()
        if obstacle(module) is None and module not in elsewhere
    }


def weights_of(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The dense weight of each mask. Raises ValueError where there is none that it could be of."""
    parameters, already = dict(model.named_parameters(remove_duplicate=False)), compact_layers(model)
    for name, mask in masks.items():
        if name in already:
            raise ValueError(f"'{name}' is compact already: make the model dense first (regrow.to_dense)")
        if name not in parameters or parameters[name].dim() < 2:
            raise ValueError(f"mask '{name}' names no weight of this model (a parameter of two or more dimensions)")
        shape = tuple(parameters[name].shape)
        if mask.shape != shape or not bool(mask.any()):
            raise ValueError(
                f"the mask of '{name}' has shape {tuple(mask.shape)} and {int(mask.sum())} alive weights; expected "
                f"shape {shape} and at least one"
            )
    return {name: parameters[name] for name in masks}
