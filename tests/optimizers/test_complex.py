"""Weights of every complex and real type are masked, bit for bit."""

import pytest
import torch
from dead import rigl
from torch import nn

import regrow


class ComplexNet(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(*size, bias=False, dtype=dtype) for size in ((12, 24), (24, 5)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        return self.second(hidden * hidden.abs().tanh()).abs()


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.snfs, regrow.rigl_sm])
def test_dead_weights_gradients_and_state_of_any_type_are_0(dtype, recipe) -> None:
    torch.manual_seed(0)
    model = ComplexNet(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    record = recipe(sparsity=0.8, total_steps=60, every=4)
    sparsifier = regrow.attach(model, optimizer, record, strict=True)
    for step in range(10):
        inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        for name, mask in sparsifier.masks.items():
            weight = model.get_parameter(name)
            momentum = optimizer.state.get(weight, {}).get("momentum_buffer")
            assert not weight[~mask].any()
            assert momentum is None or not momentum[~mask].any()
    assert sparsifier.num_updates >= 2


def test_a_copy_of_a_complex_net_is_masked() -> None:
    model = ComplexNet(torch.complex128)
    other = ComplexNet(torch.complex128)
    sparsifier = regrow.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), rigl())
    sparsifier.apply_masks(other)
    assert not any(other.get_parameter(name)[~mask].any() for name, mask in sparsifier.masks.items())
