"""Which linear combination of gradients, known in dense form, the gradient of the alive weights is."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

WEAK = 1e-3
"""Below this share of the largest singular value it is looked at what an error along a direction would do."""

HARMLESS = 1e-3
"""The error of a dense gradient, as a share of it, that unsure coefficients may bring."""


class Source(NamedTuple):
    """Where a part of a gradient comes from."""

    arrived: bool
    """In ``.grad``; else it was given away (``torch.autograd.grad``), or is on its way."""
    number: int
    """Of the backward pass, or of the first of those that accumulated."""


@dataclass
class Part:
    """What backward passes bring to one weight: to the dense weight, of its shape, and to its alive entries, (nnz,)."""

    dense: Tensor
    own: Tensor

    def add(self, other: "Part") -> None:
        """In place, and in the order in which autograd sums ``.grad``."""
        self.dense.add_(other.dense)
        self.own.add_(other.own)


@dataclass(frozen=True)
class Combination:
    """gradient = clamp(Σ cᵢ · ownᵢ, −limit, limit) + something that is 0 for every dead weight.

    Attributes:
        coefficients: of the parts that count.
        limit: where ``clip_grad_value_`` cut the gradient; infinity where nothing shows that it did.
    """

    coefficients: Mapping[Source, float]
    limit: float = math.inf


@dataclass(frozen=True)
class Equations:
    """One weight's gradient, and the parts that it may be made of.

    Attributes:
        gradient: (nnz,) of the alive entries.
        sources: of the parts, the same for every weight.
        parts: those that brought something.
        others: (nnz,) each, gradients that dead weights have none of, such as the weight itself (weight decay).
    """

    gradient: Tensor
    sources: Sequence[Source]
    parts: Mapping[Source, Part]
    others: Sequence[Tensor]

    def matrix(self, with_others: bool) -> Tensor:
        """(nnz, sources [+ others]), float64."""
        nothing = torch.zeros_like(self.gradient)
        own = [self.parts[source].own if source in self.parts else nothing for source in self.sources]
        columns = [*own, *(self.others if with_others else ())]
        return torch.stack([column.double() for column in columns or [nothing]], 1)[:, : len(columns)]

    def terms(self, coefficients: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Dense parts, each with its coefficient, without those that do not count."""
        for source, coefficient in zip(self.sources, coefficients.tolist(), strict=False):
            if source in self.parts and coefficient:
                yield self.parts[source].dense, coefficient

    @property
    def tolerance(self) -> float:
        """What rounding in the gradient's type may do to a sum: eps^⅔, of float32 2.4e-5."""
        return math.pow(torch.finfo(self.gradient.dtype).eps, 2 / 3)


def explain(equations: Sequence[Equations], guess: Tensor | None) -> list[Combination | None]:
    """The combination that each weight's gradient is; None where it is none, or where more than one would fit.

    Weights share their coefficients where one set fits (sums over tasks, per-sample clipping, unscaling); one that it
    does not fit has its own (clipping layer by layer).

    Args:
        equations: of every weight.
        guess: coefficients that hold where they fit.
    """
    if guess is None:
        found: list[Combination | None] = [None] * len(equations)
    else:
        found = [_verified(each, guess, False, False) for each in equations]
    attempts = [(with_others, cut) for with_others in (False, True) for cut in (False, True)]
    together = [range(len(equations))]
    for groups in (together, [[number] for number in range(len(equations))]):
        for group in groups:
            for with_others, cut in attempts:
                missing = [number for number in group if found[number] is None]
                shared = _fit([equations[number] for number in group], with_others, cut) if missing else None
                if shared is not None:
                    for number in missing:
                        found[number] = _verified(equations[number], shared, with_others, cut)
    return [_alone(each) if known is None else known for each, known in zip(equations, found, strict=True)]


def _alone(equations: Equations) -> Combination | None:
    """One part at most, and no alive weight has a gradient, so that nobody could see a factor."""
    zero = not any(bool(vector.any()) for vector in (equations.gradient, *(p.own for p in equations.parts.values())))
    return Combination(dict.fromkeys(equations.parts, 1.0)) if zero and len(equations.sources) <= 1 else None


def _fit(equations: Sequence[Equations], with_others: bool, cut: bool) -> Tensor | None:
    """Coefficients by least squares over some weights at once; None where they are not sure.

    Args:
        equations: of these weights.
        with_others: whether the other vectors may take part.
        cut: whether the largest entries of each gradient may have been larger, and say nothing.
    """
    triangles, rows = [], 0
    for each in equations:
        system = torch.cat([each.matrix(with_others), each.gradient.double().unsqueeze(1)], 1)
        if cut:
            system = system[each.gradient.abs() < each.gradient.abs().amax()]
        rows += int((system != 0).any(1).sum())
        triangles.append(torch.linalg.qr(system, mode="r").R)
    triangle = torch.linalg.qr(torch.cat(triangles), mode="r").R
    matrix, right = triangle[:, :-1], triangle[:, -1]
    lengths = matrix.norm(dim=0)
    lengths[lengths == 0] = 1.0
    left, singular, directions = torch.linalg.svd(matrix / lengths)
    singular = torch.cat([singular, singular.new_zeros(len(directions) - len(singular))])
    eps = max(float(torch.finfo(each.gradient.dtype).eps) for each in equations)
    largest = float(singular.amax()) if len(singular) else 0.0
    rank = int((singular > eps * largest).sum())
    if rows <= rank:
        return None
    inner = (left.T @ right)[:rank] / singular[:rank]
    solution = (directions[:rank].T @ inner) / lengths
    noise = max(float((matrix @ solution - right).norm()), eps * float(right.norm()))
    for value, direction in zip(singular.tolist(), directions / lengths, strict=True):
        error = noise / value if value > eps * largest else math.inf
        if value <= WEAK * largest and not all(_is_harmless(each, solution, direction, error) for each in equations):
            return None
    return torch.where((solution - 1).abs() <= equations[0].tolerance, 1.0, solution)


def _is_harmless(equations: Equations, solution: Tensor, direction: Tensor, error: float) -> bool:
    """Whether an error along a direction leaves the dense gradient as it is."""
    moved, terms = _norms(equations, direction)
    return moved <= equations.tolerance * terms or error * moved <= HARMLESS * _norms(equations, solution)[0]


def _norms(equations: Equations, coefficients: Tensor) -> tuple[float, float]:
    """‖Σ cᵢ · denseᵢ‖ and Σ |cᵢ| ‖denseᵢ‖."""
    total, sizes = None, 0.0
    for dense, coefficient in equations.terms(coefficients):
        total = dense * coefficient if total is None else total.add_(dense, alpha=coefficient)
        sizes += abs(coefficient) * float(dense.norm())
    return 0.0 if total is None else float(total.norm()), sizes


def _verified(equations: Equations, coefficients: Tensor, with_others: bool, cut: bool) -> Combination | None:
    """The combination, if it gives the gradient up to rounding."""
    matrix, gradient = equations.matrix(with_others), equations.gradient.double()
    sums, limit = matrix @ coefficients, math.inf
    if cut:
        limit = float(gradient.abs().amax())
        beyond = sums.abs() >= limit
        if not bool((gradient[~beyond] != 0).any()) and int(beyond.sum()) < 2:
            return None  # one number says nothing
        sums = sums.clamp(-limit, limit)
    rounding = equations.tolerance * float((matrix.norm(dim=0) * coefficients.abs()).sum())
    if not float((sums - gradient).norm()) <= rounding:
        return None
    counted = {
        s: c for s, c in zip(equations.sources, coefficients.tolist(), strict=False) if s in equations.parts and c
    }
    return Combination(counted, limit if bool((matrix @ coefficients).abs().amax() > limit) else math.inf)
