"""Linear layers for few rows give what torch's own give."""

import pytest
import torch

from dspyc.models.linear import FewRows, use_few_rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 5), (1, 64), (1, 65), (2, 0), (7,)])
def test_the_outputs_are_those_of_torchs_linear(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 96, bias=bias)
    given = torch.randn(*shape, 48)
    expected = layer(given)
    use_few_rows(layer)
    found = layer(given)
    assert type(layer) is FewRows
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_only_float32_linear_layers_change() -> None:
    class Own(torch.nn.Linear):
        pass

    half, own = torch.nn.Linear(4, 4, dtype=torch.bfloat16), Own(4, 4)
    use_few_rows(torch.nn.ModuleList([half, own, torch.nn.Embedding(3, 4)]))
    assert type(half) is torch.nn.Linear
    assert type(own) is Own
