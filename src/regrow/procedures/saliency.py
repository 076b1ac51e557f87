"""One-shot scores that a gradient alone does not carry: functions of (model, loss, batches), and masks made of them.

As everywhere in the library a larger score is worth more. No pass changes the model, its gradients or any of
torch's own generators, also where the batches are drawn from them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regrow.layers import Layer, find_layers, unwrap
from regrow.parts.distributions import Sharing, as_distribution, total_alive, uniform
from regrow.parts.scores import uniform_numbers
from regrow.parts.topk import select

Loss = Callable[[Any, Any], Tensor]
Batches = Iterable[tuple[Any, Any]]
Scores = dict[str, Tensor]
Names = str | Sequence[str]
IN_FLOAT32 = {torch.float32, torch.float16, torch.bfloat16, torch.int16, torch.int8, torch.uint8, torch.bool}
"""Types whose every value is a float32 too; comparing others there would round differences away."""


def snip_scores(
    model: nn.Module, loss: Loss, batches: Batches, *, include: Names | None = None, exclude: Names = ()
) -> Scores:
    """SNIP's connection sensitivity |g · w|, g = ∂L/∂w, L the mean of the batches' losses.

    :func:`regrow.snip` does the same with the first batch of the training loop.

    Args:
        model: any module; it is run in the mode that it is in.
        loss: (outputs, targets) → scalar, such as ``torch.nn.functional.cross_entropy``.
        batches: pairs of (inputs, targets) on the model's device; a tuple of inputs is handed on as arguments.
        include: globs of layers, as for :func:`regrow.find_layers`.
        exclude: globs of layers to leave out.

    Returns:
        Parameter name → scores of the weight's shape.

    Raises:
        ValueError: there is no batch, a pattern matches nothing, a weight is compact or takes no part in the loss.

    Lee, Ajanthan & Torr 2019, section 4.1.
    """
    losses = _Losses(model, loss, batches, include, exclude)
    return {name: (gradient * losses.weights[name].detach()).abs() for name, gradient in losses.mean_gradient().items()}


def grasp_scores(
    model: nn.Module, loss: Loss, batches: Batches, *, include: Names | None = None, exclude: Names = ()
) -> Scores:
    """GraSP's w · (H g): what a weight does for the gradient flow; g and H are ∂L/∂w and ∂²L/∂w² over all the layers.

    To first order gᵀg falls by 2 w_j (H g)_j when weight j is removed. The paper's score is −w · (H g) and the largest
    are removed; this is its negative, so that here too the largest live. The batches are held and run through twice.

    Arguments, returns and errors as for :func:`snip_scores`; the loss must be twice differentiable.

    Wang, Zhang & Grosse 2020, section 4, equation 8. Its code divides the logits by 200 first; write that in the loss
    if it is wanted: ``lambda outputs, targets: cross_entropy(outputs / 200, targets)``.
    """
    losses = _Losses(model, loss, batches, include, exclude)
    products = losses.hessian_times(losses.mean_gradient())
    return {name: product * losses.weights[name].detach() for name, product in products.items()}


def obd_scores(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    probes: int | None = 100,
    seed: int = 0,
    include: Names | None = None,
    exclude: Names = (),
) -> Scores:
    """Optimal Brain Damage's saliency ½ H_jj w_j²: the rise of the loss, at a minimum of it, when weight j is removed.

    H_jj by Hutchinson's estimate, the mean of v ⊙ (H v) over random sign vectors v, without bias, with the variance
    Σ_{k≠j} H_jk² / probes; or exactly, by one product H e_j a weight. At a minimum H_jj ≥ 0; elsewhere, and in an
    estimate, a saliency can be negative.

    Args:
        model: a trained net; it is run in the mode that it is in.
        loss: (outputs, targets) → scalar, twice differentiable.
        batches: pairs of (inputs, targets), held and run through once a probe.
        probes: number of random vectors; None: one product for each weight, exact and for small nets.
        seed: of the random vectors.
        include: globs of layers, as for :func:`regrow.find_layers`.
        exclude: globs of layers to leave out.

    Returns and errors as for :func:`snip_scores`.

    LeCun, Denker & Solla 1990, equation 5 (their diagonal by a second back-propagation is the Gauss–Newton part where
    activations are piecewise linear); Bekas, Kokiopoulou & Saad 2007 for the estimate.
    """
    if probes is not None and probes < 1:
        raise ValueError(f"probes is {probes}; expected at least 1, or None for the exact diagonal")
    losses = _Losses(model, loss, batches, include, exclude)
    shapes = {name: tuple(weight.shape) for name, weight in losses.weights.items()}
    vectors = _unit_vectors(losses.weights) if probes is None else _sign_vectors(losses.weights, shapes, probes, seed)
    diagonal = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in losses.weights.items()}
    for vector in vectors:
        for name, product in losses.hessian_times(vector).items():
            if name in vector:
                diagonal[name] += vector[name] * product / (probes or 1)
    return {name: 0.5 * diagonal[name] * losses.weights[name].detach() ** 2 for name in diagonal}


def masks_from_scores(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: Literal["layer", "global"] = "global",
    distribution: Sharing = uniform,
) -> dict[str, Tensor]:
    """Masks of the weights with the largest scores, for :func:`regrow.from_masks`; counts are exact whatever the ties.

    Args:
        scores: parameter name → scores of the weight's shape.
        sparsity: S, the global share of zeros in [0, 1).
        scope: "global": one threshold over all layers, at least one weight alive in each; "layer": each layer by
            ``distribution``, which may be a dict glob → sparsity.
        distribution: used where ``scope`` is "layer". It sees shapes alone: weights with more than two dimensions
            count as convolutions, the first of all as the model's first layer.

    Raises:
        ValueError: the sparsity is outside its range or leaves less than one weight a layer; a score is NaN.

    >>> scores = {"a": torch.tensor([[0.2, 0.12], [0.02, 0.16]])}
    >>> masks_from_scores(scores, 0.25)["a"].tolist()
    [[True, True], [False, True]]
    """
    broken = [name for name, score in scores.items() if bool(score.isnan().any())]
    if broken or not scores:
        found = f"scores of '{broken[0]}' contain NaN" if broken else "scores are empty"
        raise ValueError(f"{found}; expected a number for each weight: check the loss and the batches")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope is {scope!r}; expected 'layer' or 'global'")
    first = next(iter(scores))
    layers = {
        name: Layer(name, tuple(score.shape), score.dim() > 2, is_stem=score.dim() > 2 and name == first)
        for name, score in scores.items()
    }
    everyone = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    if scope == "global":
        return largest(scores, total_alive(layers, sparsity), everyone)
    counts = as_distribution(distribution)(layers, sparsity)
    return {name: select(score, counts[name], everyone[name]) for name, score in scores.items()}


def largest(scores: Mapping[str, Tensor], count: int, among: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the ``count`` candidates with the largest scores over all layers, at least one in each.

    Args:
        scores: parameter name → scores of the weight's shape.
        count: from one a layer to the number of candidates.
        among: parameter name → bool mask of the candidates, at least one in each layer.
    """
    exact = torch.float64 if any(score.dtype not in IN_FLOAT32 for score in scores.values()) else torch.float32
    values = []
    for name, score in scores.items():
        candidates = score[among[name]].cpu().to(exact)
        candidates[candidates.argmax()] = torch.inf
        values.append(candidates)
    everything = torch.cat(values)
    chosen = select(everything, count, torch.ones_like(everything, dtype=torch.bool))
    masks = {}
    for name, part in zip(scores, chosen.split([candidates.numel() for candidates in values]), strict=True):
        masks[name] = torch.zeros_like(among[name])
        masks[name][among[name]] = part.to(among[name].device)
    return masks


class _Losses:
    """The loss of each batch as a function of the chosen weights, differentiable once and twice."""

    def __init__(self, model: nn.Module, loss: Loss, batches: Batches, include: Names | None, exclude: Names) -> None:
        self.model, self.loss = unwrap(model), loss
        names = find_layers(self.model, include, exclude)
        parameters = dict(self.model.named_parameters())
        for name, layer in names.items():
            if parameters[name].shape != layer.shape:
                raise ValueError(
                    f"'{name}' is compact, and scores are of every weight: call sparsifier.detach() or "
                    "regrow.to_dense(model) first"
                )
        with _undisturbed(self.model):
            self.batches = list(batches)
        if not self.batches:
            raise ValueError("batches is empty; expected at least one pair of (inputs, targets)")
        self.weights = {name: parameters[name].detach().requires_grad_() for name in names}

    def mean_gradient(self) -> Scores:
        """∂L/∂w, of the mean loss over the batches."""
        return self._summed(lambda value: self._gradients(value, create_graph=False))

    def hessian_times(self, vector: Mapping[str, Tensor]) -> Scores:
        """H v for every chosen weight, v being 0 where it is not given, of the mean loss over the batches."""

        def product(value: Tensor) -> list[Tensor | None]:
            gradients = dict(zip(self.weights, self._gradients(value, create_graph=True), strict=True))
            along = sum((gradients[name] * vector[name]).sum() for name in vector)
            assert isinstance(along, Tensor)
            if not along.requires_grad:  # a loss that is linear in the weights
                return [None] * len(self.weights)
            return list(torch.autograd.grad(along, list(self.weights.values()), allow_unused=True))

        return self._summed(product)

    def _gradients(self, value: Tensor, create_graph: bool) -> list[Tensor]:
        found = torch.autograd.grad(value, list(self.weights.values()), create_graph=create_graph, allow_unused=True)
        gradients = []
        for name, gradient in zip(self.weights, found, strict=True):
            if gradient is None:
                raise ValueError(f"'{name}' takes no part in the loss: leave it out with exclude=['{name}']")
            gradients.append(gradient)
        return gradients

    def _summed(self, measure: Callable[[Tensor], Sequence[Tensor | None]]) -> Scores:
        total = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in self.weights.items()}
        for inputs, targets in self.batches:
            with _undisturbed(self.model) as state:
                arguments = inputs if isinstance(inputs, tuple) else (inputs,)
                outputs = torch.func.functional_call(self.model, {**state, **self.weights}, arguments)
                value = self.loss(outputs, targets)
                if not isinstance(value, Tensor) or value.numel() != 1:
                    raise ValueError("loss must return one number, such as the mean over the batch")
                for name, part in zip(total, measure(value), strict=True):
                    if part is not None:
                        total[name] += part.detach() / len(self.batches)
        return total


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Copies of the buffers to run with; generators and autograd's mode as before at the end."""
    with ExitStack() as stack:
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        stack.enter_context(torch.enable_grad())
        # The fused attention kernels have no second derivative.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield {name: buffer.clone() for name, buffer in model.named_buffers()}


def _unit_vectors(weights: Mapping[str, Tensor]) -> Iterator[Scores]:
    for name, weight in weights.items():
        for position in range(weight.numel()):
            vector = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
            vector[position] = 1.0
            yield {name: vector.view(weight.shape)}


def _sign_vectors(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], probes: int, seed: int
) -> Iterator[Scores]:
    for probe in range(probes):
        yield {
            name: (2.0 * (uniform_numbers(shapes[name], seed=seed, step=probe, name=name) < 0.5) - 1.0).to(weight)
            for name, weight in weights.items()
        }
