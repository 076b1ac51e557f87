"""Seeds of one tiny configuration: one after another, against stacked in one process (vmap over the parameters).

    python benchmarks/stacked.py [--seeds 1 2 4 8] [--steps 300]

LeNet-300-100 on 64 pixels, batch 64, masked at S = .9, SGD with momentum and weight decay, one thread. A step of the
stacked nets is one of all seeds, each with its own batch. Rounds are interleaved; ratios are taken within a round.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from regrow_lab.models import find_model

BATCH, RATE, MOMENTUM, DECAY = 64, 0.1, 0.9, 5e-4


def net() -> nn.Module:
    return find_model("lenet-300-100")(num_classes=10, inputs=64)


def one_after_another(seeds: int) -> Callable[[int], None]:
    nets = [net() for _ in range(seeds)]
    masks = [[torch.rand_like(p) < 0.1 if p.dim() > 1 else None for p in each.parameters()] for each in nets]
    optimizers = [torch.optim.SGD(each.parameters(), RATE, MOMENTUM, weight_decay=DECAY) for each in nets]
    inputs, labels = torch.randn(seeds, BATCH, 64), torch.randint(10, (seeds, BATCH))

    def run(steps: int) -> None:
        for each, optimizer, mask, x, y in zip(nets, optimizers, masks, inputs, labels, strict=True):
            for _ in range(steps):
                F.cross_entropy(each(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    for parameter, alive in zip(each.parameters(), mask, strict=True):
                        if alive is not None:
                            parameter.mul_(alive)

    return run


def stacked(seeds: int) -> Callable[[int], None]:
    nets = [net() for _ in range(seeds)]
    parameters, buffers = stack_module_state(nets)
    parameters = {name: value.detach() for name, value in parameters.items()}
    masks = {name: torch.rand_like(value) < 0.1 for name, value in parameters.items() if value.dim() > 2}
    momenta = {name: torch.zeros_like(value) for name, value in parameters.items()}
    inputs, labels = torch.randn(seeds, BATCH, 64), torch.randint(10, (seeds, BATCH))

    def loss(weights: dict[str, Tensor], state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(nets[0], (weights, state), (x,)), y)

    gradients = vmap(grad(loss))

    def run(steps: int) -> None:
        for _ in range(steps):
            found = gradients(parameters, buffers, inputs, labels)
            for name, value in parameters.items():
                momenta[name].mul_(MOMENTUM).add_(found[name].add_(value, alpha=DECAY))
                value.sub_(momenta[name], alpha=RATE)
                if name in masks:
                    value.mul_(masks[name])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'seeds':>5} {'one after another':>18} {'stacked':>10}   speed of the stacked (min – median – max)")
    for seeds in options.seeds:
        both = {"one": one_after_another(seeds), "stacked": stacked(seeds)}
        times: dict[str, list[float]] = {name: [] for name in both}
        for run in both.values():
            run(20)
        for _ in range(options.rounds):
            for name, run in both.items():
                began = time.perf_counter()
                run(options.steps)
                times[name].append((time.perf_counter() - began) / options.steps)
        ratios = sorted(one / two for one, two in zip(times["one"], times["stacked"], strict=True))
        spread = " – ".join(f"{value:.2f}" for value in (ratios[0], statistics.median(ratios), ratios[-1]))
        one, two = (1000 * statistics.median(times[name]) for name in both)
        print(f"{seeds:>5} {one:>15.2f} ms {two:>7.2f} ms   × {spread}")


if __name__ == "__main__":
    main()
