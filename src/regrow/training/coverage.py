"""What of a model stays dense, and why: a sparsity is said of a net only beside what it leaves out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from regrow.layers import EMBEDDINGS, Layer, known_layers, matches_any
from regrow.tied_weights import identity, places_of_parameters

REMEDY = "see include="


@dataclass(frozen=True)
class DenseWeight:
    """A weight with two or more dimensions that is not attached to, and the reason."""

    layer: Layer
    reason: str


def dense_weights(
    model: nn.Module,
    attached: Collection[str],
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
) -> dict[str, DenseWeight]:
    """Every parameter with two or more dimensions besides the attached, by name, each memory once.

    Args:
        model: the user's own module.
        attached: names of the weights that are sparsified.
        include, exclude: what :func:`regrow.find_layers` was given.
    """
    known = known_layers(model)
    seen = {identity(model.get_parameter(name)) for name in attached}
    of_embeddings = {identity(module.weight) for module in model.modules() if isinstance(module, EMBEDDINGS)}
    found = {}
    for name, parameter in places_of_parameters(model).items():
        layer = known.get(name, Layer(name, tuple(parameter.shape)))
        if len(layer.shape) < 2 or 0 in layer.shape or identity(parameter) in seen:
            continue
        seen.add(identity(parameter))
        if identity(parameter) in of_embeddings:
            reason = "embedding"
        elif matches_any(name, exclude):
            reason = "left out by exclude="
        elif name not in known:
            reason = _reason(model, name)
        else:
            reason = "no pattern of the algorithm fits" if include is None else "not named in include="
        found[name] = DenseWeight(layer, reason)
    return found


def _reason(model: nn.Module, name: str) -> str:
    """Why a weight is none of the known ones."""
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    computed = last.rpartition("_")[0]  # weight_v, weight_orig, weight_hh_l0_g
    if isinstance(owner, ParametrizationList) or (hasattr(owner, computed) and computed not in owner._parameters):
        is_list = sum(size > 1 for size in owner.get_parameter(last).shape) < 2  # weight_norm's magnitudes
        return "parametrized" if is_list else f"parametrized: {REMEDY}"
    kind = type(owner).__name__
    return "normalisation" if "Norm" in kind else f"{kind} is not known: {REMEDY}"
