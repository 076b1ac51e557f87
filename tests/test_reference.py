"""The library against a plain numpy transcription of the methods: same masks, same weights, in float64.

The transcription knows nothing of torch: a two-layer net with its gradients written out, SGD with momentum, Nesterov
and weight decay, and each method's update as sections 2 and 3 of the design say it, with lists and sorting.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow.parts.scores import uniform_numbers

SIZES, STEPS, EVERY, ALPHA, RATE, MOMENTUM, DECAY = (10, 14, 6), 44, 4, 0.4, 0.1, 0.9, 1e-3
STOP, NAMES = int(0.75 * STEPS), ("0.weight", "2.weight")
Arrays = list[np.ndarray]


def data(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    return rng.normal(size=(16, SIZES[0])), rng.normal(size=(16, SIZES[2]))


def gradients(weights: Arrays, inputs: np.ndarray, targets: np.ndarray) -> Arrays:
    """Of the mean squared error of tanh(x W0ᵀ) W1ᵀ."""
    hidden = np.tanh(inputs @ weights[0].T)
    error = 2 * (hidden @ weights[1].T - targets) / targets.size
    back = (error @ weights[1]) * (1 - hidden**2)
    return [back.T @ inputs, error.T @ hidden]


def best(scores: np.ndarray, candidates: list[int], count: int) -> set[int]:
    """Positions of the largest scores; on ties the lower position."""
    return set(sorted(candidates, key=lambda i: (-scores.flat[i], i))[:count])


def shares(freed: int, statistics: list[float], room: list[int]) -> list[int]:
    """Largest-remainder shares of the freed weights; room is never short in these runs."""
    ideal = [freed * value / sum(statistics) for value in statistics]
    assert all(value < space for value, space in zip(ideal, room, strict=True))
    out = [math.floor(value) for value in ideal]
    for i in sorted(range(len(ideal)), key=lambda i: out[i] - ideal[i])[: freed - sum(out)]:
        out[i] += 1
    return out


def update(method: str, step: int, weights: Arrays, masks: Arrays, grads: Arrays, momenta: Arrays) -> Arrays:
    """New masks: drop, then grow among all that is not kept."""
    fraction = ALPHA / 2 * (1 + math.cos(math.pi * step / STOP)) if step < STOP else 0.0
    alive = [[i for i in range(m.size) if m.flat[i]] for m in masks]
    dropped = [math.floor(fraction * len(a)) for a in alive]
    kept = [best(np.abs(w), a, len(a) - k) for w, a, k in zip(weights, alive, dropped, strict=True)]
    grown = dropped
    if method in ("snfs", "rigl-sg", "rigl-sm"):
        source = grads if method == "rigl-sg" else momenta
        means = [float(np.mean(np.abs(s).flat[a])) for s, a in zip(source, alive, strict=True)]
        grown = shares(sum(dropped), means, [m.size - len(k) for m, k in zip(masks, kept, strict=True)])
    out = []
    for layer, name in enumerate(NAMES):
        if method == "set":
            scores = uniform_numbers(masks[layer].shape, seed=5, step=step, name=name).numpy()
        else:
            scores = np.abs(momenta[layer] if method == "snfs" else grads[layer])
        others = [i for i in range(masks[layer].size) if i not in kept[layer]]
        mask = np.zeros(masks[layer].size)
        mask[list(kept[layer] | best(scores, others, grown[layer]))] = 1
        out.append(mask.reshape(masks[layer].shape))
    return out


def transcription(method: str, weights: Arrays, masks: Arrays) -> tuple[Arrays, Arrays]:
    """A whole run by hand; ``momenta`` is the optimizer's buffer, or the dense one of SNFS."""
    buffers, dense = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    taken, updated = 0, 0
    for call in range(STEPS):
        raw = gradients(weights, *data(call))
        if method.startswith("rigl") and taken > updated and taken % EVERY == 0 and taken <= STOP:
            masks, updated = update(method, taken, weights, masks, raw, buffers), taken
            weights, buffers = ([x * m for x, m in zip(xs, masks, strict=True)] for xs in (weights, buffers))
            continue
        dense = [MOMENTUM * m + g for m, g in zip(dense, raw, strict=True)]
        step = [g * m + DECAY * w for g, m, w in zip(raw, masks, weights, strict=True)]
        buffers = [MOMENTUM * b + g for b, g in zip(buffers, step, strict=True)]
        weights = [w - RATE * (g + MOMENTUM * b) for w, g, b in zip(weights, step, buffers, strict=True)]
        taken += 1
        if method in ("set", "snfs") and taken % EVERY == 0 and taken <= STOP:
            masks = update(method, taken, weights, masks, raw, dense)
            weights, buffers = ([x * m for x, m in zip(xs, masks, strict=True)] for xs in (weights, buffers))
    return weights, masks


@pytest.mark.parametrize("method", ["static", "set", "rigl", "snfs", "rigl-sg", "rigl-sm"])
def test_the_library_agrees_with_the_transcription(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(SIZES[0], SIZES[1], bias=False), nn.Tanh(), nn.Linear(SIZES[1], SIZES[2], bias=False)
    )
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)
    recipes = {
        "set": regrow.set_,
        "rigl": regrow.rigl,
        "snfs": regrow.snfs,
        "rigl-sg": regrow.rigl_sg,
        "rigl-sm": regrow.rigl_sm,
    }
    arguments = {"sparsity": 0.7, "total_steps": STEPS, "every": EVERY, "drop_fraction": ALPHA}
    record = regrow.static(sparsity=0.7) if method == "static" else recipes[method](**arguments)
    sparsifier = regrow.attach(model, optimizer, record, seed=5)
    weights = [model.get_parameter(name).detach().numpy().copy() for name in NAMES]
    masks = [sparsifier.masks[name].numpy().astype(float) for name in NAMES]
    expected_weights, expected_masks = transcription(method, weights, masks)
    for call in range(STEPS):
        inputs, targets = (torch.from_numpy(array) for array in data(call))
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert method == "static" or sparsifier.num_updates >= 6
    for name, weight, mask in zip(NAMES, expected_weights, expected_masks, strict=True):
        assert np.array_equal(sparsifier.masks[name].numpy(), mask.astype(bool))
        np.testing.assert_allclose(model.get_parameter(name).detach().numpy(), weight, rtol=1e-9, atol=1e-12)
    assert method == "static" or any((m != s).any() for m, s in zip(expected_masks, masks, strict=True))
