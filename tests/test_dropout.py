"""Dropout on a CPU: the same distribution as PyTorch's, and the same attention."""

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kcelectra.pretraining.dropout import Dropout, attend, keep_mask


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_of_zeros_is_the_probability_in_each_of_the_four_lanes(probability, dtype):
    torch.manual_seed(0)
    mask = keep_mask(torch.Size([250_000, 4]), probability=probability, dtype=dtype)
    assert (mask == 0).float().mean(0).tolist() == pytest.approx([probability] * 4, abs=0.004)
    assert mask.max().item() == pytest.approx(1 / (1 - probability), rel=4e-3)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    is_dropped = (keep_mask(torch.Size([1_000_000]), probability=0.1, dtype=torch.float32) == 0).float()
    for distance in (1, 2, 3, 4, 5, 8):
        both = (is_dropped[distance:] * is_dropped[:-distance]).mean().item()
        assert both == pytest.approx(0.01, abs=0.0007), distance


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 4)])
def test_any_shape_keeps_its_mean_and_gradient(shape):
    torch.manual_seed(0)
    layer = Dropout(0.5)
    x = torch.ones(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert set(y.flatten().tolist()) <= {0.0, 2.0}
    assert torch.equal(x.grad, y.detach())


def test_evaluation_drops_nothing():
    x = torch.randn(4, 5)
    assert Dropout(0.3).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)


def test_attention_with_dropout_equals_sdpa_where_nothing_is_dropped():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in range(3))
    documents = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 2, 2, 3, 3, 3, 3, 3]])
    mask = documents[:, None, :, None] == documents[:, None, None, :]
    module = nn.Module()
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=8**-0.5)
    actual, _ = attend(module, query, key, value, mask, dropout=1e-9, scaling=8**-0.5)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    expected_gradient = torch.autograd.grad(expected.square().sum(), query)[0]
    actual_gradient = torch.autograd.grad(actual.square().sum(), query)[0]
    torch.testing.assert_close(actual_gradient, expected_gradient, atol=1e-5, rtol=0)


def test_attention_drops_the_share_it_is_told_to():
    torch.manual_seed(0)
    query = key = torch.zeros(1, 1, 400, 4)
    value = torch.ones(1, 1, 400, 4)
    mask = torch.ones(1, 1, 400, 400, dtype=torch.bool)
    output, _ = attend(nn.Module(), query, key, value, mask, dropout=0.1)
    assert output.mean().item() == pytest.approx(1, abs=0.005)
    assert output.std().item() == pytest.approx((0.1 / 0.9 / 400) ** 0.5, rel=0.1)
