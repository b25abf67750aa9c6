import pytest
import torch
import torch.nn.functional as F

from reranker.training.cpu_kernels import OneDnnLinears


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def product(shape: tuple[int, ...], *, bias: bool) -> list[torch.Tensor]:
    """The output of a linear layer, and the gradients of its inputs and weights."""
    torch.manual_seed(0)
    taken = [torch.randn(*shape, 24), torch.randn(48, 24), *([torch.randn(48)] if bias else [])]
    for tensor in taken:
        tensor.requires_grad_()
    output = F.linear(*taken)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return [output.detach(), *(tensor.grad for tensor in taken if tensor.grad is not None)]


@pytest.mark.parametrize("shape", [(30, 50), (7,), (2, 3, 4), ()], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_a_linear_layer(shape: tuple[int, ...], bias: bool):
    expected = product(shape, bias=bias)
    with OneDnnLinears():
        actual = product(shape, bias=bias)
    assert len(actual) == len(expected) == (4 if bias else 3)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


def operations(*, autocast: bool) -> set[str]:
    with torch.profiler.profile() as profile, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        F.linear(torch.ones(1000, 24), torch.ones(48, 24), torch.ones(48))
    return {event.key for event in profile.key_averages()}


def test_only_float32_goes_through_onednn_and_only_inside():
    convolution = "aten::mkldnn_convolution"
    with OneDnnLinears():
        assert convolution in operations(autocast=False)
        assert convolution not in operations(autocast=True)
        assert F.linear(torch.ones(2, 3).double(), torch.ones(4, 3).double()).dtype == torch.float64
    assert convolution not in operations(autocast=False)
