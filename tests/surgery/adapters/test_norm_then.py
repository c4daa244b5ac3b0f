"""A norm with a foreign norm's tail is a plain module to torch's own tools."""

import copy
import pickle

import pytest
import torch
from torch import nn

from steadynorm.surgery import convert_, to_torch_
from steadynorm.surgery.adapters.norm_then import NormThen, fused_activation, tail_of
from tests.support.foreign import FOREIGN, chain
from tests.support.layers import drawn

X = drawn(5, 3, 6, 6)
TOOLS = {
    "script": torch.jit.script,
    "export": lambda model: torch.export.export(model, (X,)).module(),
    "compile": lambda model: torch.compile(model, backend="eager", fullgraph=True),
    "fx": torch.fx.symbolic_trace,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
@pytest.mark.filterwarnings("ignore")
def test_torchs_tools_take_it(tool):
    model = chain(FOREIGN["timm, hard swish"])
    to_torch_(model)
    assert type(model[1]) is NormThen
    torch.testing.assert_close(tool(model)(X), model(X), rtol=1e-12, atol=1e-12)


def test_a_state_dict_without_metadata_loads_strictly():
    model = chain(FOREIGN["timm, prelu"])
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(X)
    convert_(model, "batch_norm")
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert model.load_state_dict(saved, strict=True).missing_keys == []
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)


def test_the_tail_is_given_in_its_order():
    wrapped = NormThen(nn.BatchNorm2d(3), {"drop": nn.Dropout(), "act": nn.GELU()})
    assert list(tail_of(wrapped)) == ["drop", "act"]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ([], (True, None)),
        ([nn.Identity(), nn.Identity()], (True, None)),
        ([nn.Identity(), nn.ReLU(inplace=True)], (True, "relu")),
        ([nn.SiLU()], (True, "silu")),
        ([nn.LeakyReLU(0.01)], (True, "leaky_relu")),
        ([nn.LeakyReLU(0.1)], (False, None)),
        ([nn.ReLU6()], (False, None)),
        ([nn.Dropout(), nn.ReLU()], (False, None)),
        ([nn.ReLU(), nn.GELU()], (False, None)),
    ],
)
def test_only_what_ours_compute_is_fused(tail, expected):
    assert fused_activation(tail) == expected


def test_an_activation_with_a_hook_is_not_fused():
    act = nn.ReLU()
    act.register_forward_hook(lambda *_: None)
    assert fused_activation([act]) == (False, None)
