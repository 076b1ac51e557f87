"""Several threads, as a server has them, while one of them cuts a graph."""

import threading
import time

import torch
from pairs import pair
from torch import Tensor, nn

from regrow.compaction.capture import graph_forward
from regrow.compaction.capture.tracing import trace


class Net(nn.Module):
    """Stays in its forward for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        time.sleep(0.01)
        return self.head(torch.relu(x).mean((2, 3)))


def test_threads_make_the_first_call_together() -> None:
    dense, compact = (model.eval() for model in pair(Net()))
    call, x = nn.Module.__call__, torch.randn(3, 3, 6, 6)
    start, found = threading.Barrier(3), list[object]()

    def work() -> None:
        start.wait()
        try:
            found.append(torch.equal(compact(x), dense(x)))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 3
    assert nn.Module.__call__ is call
    (forward,) = graph_forward.installed(compact)
    assert (forward.failure, len(forward.regions)) == (None, 1)


class Waits(Net):
    """Stays in its forward until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.may_go_on = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.entered.set()
        self.may_go_on.wait(10)
        return super().forward(x)


def test_modules_run_in_other_threads_while_one_traces() -> None:
    model, other, x = Waits(), nn.Linear(4, 2), torch.randn(3, 4)
    expected = other(x), model.head.weight, model.conv(x.new_ones(1, 3, 4, 4))
    traces = list[torch.fx.GraphModule]()
    thread = threading.Thread(target=lambda: traces.append(trace(model)))
    thread.start()
    assert model.entered.wait(10)
    try:
        found = other(x), model.head.weight, model.conv(x.new_ones(1, 3, 4, 4))
    finally:
        model.may_go_on.set()
        thread.join()
    assert all(map(torch.equal, found, expected))
    assert [node.op for node in traces[0].graph.nodes].count("call_module") == 3


def test_shapes_are_found_past_the_modules_themselves() -> None:
    _, compact = pair(Net())
    seen = list[bool]()
    compact.norm.forward = lambda x: seen.append(compact.norm.weight.is_meta) or x
    compact(torch.randn(3, 3, 6, 6))
    assert seen == [False] * len(seen)
