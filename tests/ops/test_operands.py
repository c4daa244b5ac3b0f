"""No compiled call walks the memory of a tensor that does not fit: each entry, with each argument wrong in each way."""

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.ops import _numba, _numba_self_tuned, reference
from steadynorm.ops._numba_batch_norm import BatchNorm
from steadynorm.ops._numba_gated_batch_norm import Gated
from steadynorm.statistics import SelfTuned

N, C, H, W = 4, 6, 5, 3
BANK = ("experts", "mass", "noise", "weights", "momenta")
STORED = ("running_mean", "running_var")


def triton_kernels():
    pytest.importorskip("triton")
    from steadynorm.ops import _triton

    return _triton


def x_like():
    return torch.randn(N, C, H, W)


def per_channel():
    return torch.rand(C) + 0.5


def four_kernels():
    common = {"x_NCS": x_like(), "center": per_channel(), "scale": per_channel(), "shift": per_channel()}
    common |= {"residual_NCS": x_like(), "activation": "relu"}
    after = {"dy_NCS": x_like(), **common}
    return {
        "moments": {"x_NCS": x_like()},
        "transform": common,
        "transform_sums": after,
        "transform_grad": after | {"a": per_channel(), "b": per_channel(), "c": per_channel()},
    }


def fused():
    common = {"x_NCS": x_like(), "residual_NCS": x_like(), "activation": "relu", "chunks": 1}
    common |= {"rule": Gated(1e-5, 0.1, 0.0, 0.0, 0.0), "weight": per_channel(), "bias": per_channel()}
    common |= {"saved": torch.rand(4, C)}
    stored = {"running_mean": per_channel(), "running_var": per_channel(), "momentum": 0.1}
    return {
        "normalize": common | stored | {"noise": torch.ones(()), "noise_momentum": 0.1},
        "normalize_grad": common | {"dy_NCS": x_like(), "confidence": torch.zeros(3)},
    }


def wrong(tensor):
    """Tensors that stand where another is expected, by what is wrong with them."""
    smaller = tensor[..., :-1].contiguous() if tensor.dim() and tensor.shape[-1] > 1 else tensor.new_zeros(0)
    return {
        "too small": smaller,
        "too large": torch.cat([tensor.reshape(-1), tensor.reshape(-1)]),
        "another rank": tensor.unsqueeze(0),
        "without memory": torch.empty_like(tensor, device="meta"),
        "complex": tensor.to(torch.complex64),
        "integers": tensor.int(),
    }


def of_another_form(tensor):
    """Tensors of the right shape that lie or are written otherwise."""
    forms = {"float64": tensor.double(), "half": tensor.half(), "other signs": torch._neg_view(-tensor)}
    if tensor.dim():
        forms["gaps"] = torch.stack([tensor, tensor], -1)[..., 0]
    return forms


def each_tensor(table):
    return [
        pytest.param(entry, name, id=f"{entry}-{name}")
        for entry, arguments in table.items()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    ]


def assert_refused(module, entry, arguments, name):
    for way, tensor in wrong(arguments[name]).items():
        if name == "x_NCS" and way in ("too small", "another rank"):  # an input of its own, whom the others do not fit
            continue
        if name == "noise" and way == "another rank":  # still one number
            continue
        with pytest.raises(ValueError, match=rf"^steadynorm\.ops\.{entry}: .* must .*, got .*\. "):
            getattr(module, entry)(**arguments | {name: tensor})
            pytest.fail(f"{name} was {way}")


@pytest.mark.parametrize(("entry", "name"), each_tensor(four_kernels() | fused()))
def test_a_tensor_that_does_not_fit_is_refused_by_name(entry, name, monkeypatch):
    monkeypatch.setattr(_numba, "run", lambda *_: pytest.fail("compiled code has seen it"))
    assert_refused(_numba, entry, (four_kernels() | fused())[entry], name)


@pytest.mark.parametrize("size", [(N, C, H - 1, W), (N, C + 1, H, W)], ids=["height", "channels"])
def test_an_input_of_another_size_than_the_others_is_refused(size):
    arguments = four_kernels()["transform_grad"] | {"x_NCS": torch.randn(size)}
    with pytest.raises(ValueError, match="transform_grad: dy must have shape"):
        _numba.transform_grad(**arguments)
    arguments |= {"dy_NCS": torch.randn(size), "residual_NCS": None, "x_NCS": torch.randn(size)}
    if size[1] != C:
        with pytest.raises(ValueError, match=r"transform_grad: center must .* one per channel"):
            _numba.transform_grad(**arguments)


@pytest.mark.parametrize("way", ["float64", "half", "other signs", "gaps"])
@pytest.mark.parametrize(("entry", "name"), each_tensor(fused()))
def test_the_fused_call_reads_numbers_where_they_lie_or_refuses_them(entry, name, way):
    if name == "noise" and way == "gaps":  # it has one value
        return
    arguments, plain = fused()[entry], {}
    for key, value in arguments.items():
        plain[key] = value.clone() if isinstance(value, torch.Tensor) else value
    arguments[name] = of_another_form(arguments[name])[way]
    if name.endswith("_NCS") and way in ("gaps", "other signs"):
        if name == "x_NCS" and way == "gaps" and entry == "normalize":  # samples in pieces, where there is noise
            arguments["noise"] = plain["noise"] = None
        torch.manual_seed(0)
        expected, got = getattr(_numba, entry)(**plain), getattr(_numba, entry)(**arguments)
        torch.testing.assert_close(got, expected)
    else:
        with pytest.raises(ValueError, match=f"{entry}: "):
            getattr(_numba, entry)(**arguments)


@pytest.mark.parametrize("way", ["gaps", "other signs", "float64"])
@pytest.mark.parametrize("entry", ["transform", "transform_sums", "transform_grad"])
def test_numbers_per_channel_may_lie_as_they_like(entry, way):
    arguments = four_kernels()[entry]
    expected = getattr(reference, entry)(**arguments)
    for name in {"center", "scale", "shift", "a", "b", "c"} & arguments.keys():
        arguments[name] = of_another_form(arguments[name])[way]
    torch.testing.assert_close(getattr(_numba, entry)(**arguments), expected)


def test_an_input_whose_signs_are_kept_apart_is_read_right():
    x = torch._neg_view(torch.randn(N, C, H, W))
    assert x.is_neg()
    torch.testing.assert_close(_numba.moments(x), reference.moments(x))


def test_triton_leaves_such_an_input_to_others():
    assert triton_kernels().unsupported_reason(torch._neg_view(torch.randn(N, C, H, W))) is not None


@pytest.mark.parametrize("size", [(0, C, H), (N, 0, H), (N, C, 0), (N,)], ids=str)
def test_an_input_without_values_or_channels_is_left_to_others(size):
    assert "empty or has no channels" in _numba.unsupported_reason(torch.empty(size))
    with pytest.raises(ValueError, match=r"moments: input must .* empty or has no channels"):
        _numba.moments(torch.empty(size))


def test_memory_that_was_freed_is_not_read():
    arguments = fused()["normalize"]
    arguments["weight"].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="must have memory"):
        _numba.normalize(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunks": 0}, "chunks must be between 1 and the 4 samples, got 0"),
        ({"chunks": 5}, "chunks must be between"),
        ({"running_mean": None}, "must both be given"),
        ({"running_mean": None, "running_var": None}, "must both be given, .* got Gated without"),
        (
            {"x_NCS": x_like().transpose(2, 3).contiguous().transpose(0, 1).contiguous().transpose(0, 1)},
            "must have shape",
        ),
    ],
)
def test_the_fused_call_refuses_what_a_rule_cannot_work_with(change, message):
    with pytest.raises(ValueError, match=message):
        _numba.normalize(**fused()["normalize"] | change)


@pytest.mark.parametrize("absent", STORED)
def test_batch_norm_is_refused_one_running_estimate_without_the_other(absent):
    arguments = fused()["normalize"] | {"rule": BatchNorm(1e-5), "saved": torch.empty(2, C), "noise": None}
    with pytest.raises(ValueError, match=f"must both be given, .* got BatchNorm without {absent}"):
        _numba.normalize(**arguments | {absent: None})


def test_noise_is_refused_of_one_sample():
    arguments = fused()["normalize"]
    arguments |= {name: arguments[name][:1] for name in ("x_NCS", "residual_NCS")}
    with pytest.raises(ValueError, match=rf"two or more for noise, got shape \(1, {C}, {H}, {W}\)"):
        _numba.normalize(**arguments)


def test_chunks_of_samples_in_pieces_are_refused():
    arguments = fused()["normalize"] | {"noise": None, "chunks": 2, "rule": BatchNorm(1e-5)}
    arguments |= {"saved": torch.empty(6, C), "momentum": 0.0, "running_mean": None, "running_var": None}
    _numba.normalize(**arguments)
    arguments["x_NCS"] = arguments["x_NCS"].transpose(0, 1).contiguous().transpose(0, 1)
    with pytest.raises(ValueError, match="must be contiguous in memory for chunks"):
        _numba.normalize(**arguments)


def test_one_value_per_channel_moves_no_estimate():
    arguments = fused()["normalize"] | {"noise": None, "x_NCS": torch.randn(1, C), "residual_NCS": None}
    with pytest.raises(ValueError, match=r"momentum must be 0 for one value per channel, got 0\.1"):
        _numba.normalize(**arguments)


def bank_and_numbers(channels=C):
    bank = [getattr(SelfTuned.begin(channels), name) for name in BANK]
    return dict(zip((*BANK, "mean", "var", *STORED), (*bank, *(torch.rand(channels) for _ in range(4))), strict=True))


@pytest.mark.parametrize("name", [*BANK, "mean", "var", *STORED])
def test_a_bank_that_does_not_fit_is_refused(name, monkeypatch):
    monkeypatch.setattr(_numba_self_tuned, "_follow", lambda *_: pytest.fail("compiled code has seen it"))
    for way in ("too small", "too large", "another rank"):
        tensors = bank_and_numbers()
        tensors[name] = wrong(tensors[name])[way]
        bank, (mean, var, *stored) = list(tensors.values())[:5], list(tensors.values())[5:]
        assert not _numba_self_tuned.takes(bank, mean, var, *stored)
        with pytest.raises(ValueError, match=r"update_running_: a bank of K momenta .* must have shapes"):
            _numba_self_tuned.update_running_(bank, 1, 0.1, mean, var, 10, *stored)


@pytest.mark.parametrize("width", [4, 12])
def test_a_layer_whose_statistics_were_cut_or_widened_writes_nowhere_else(width):
    layer = steadynorm.BatchNorm1d(8, running="self_tuned")
    layer(torch.randn(64, 8))
    place = torch.full((3, width), 7.0)
    layer.running_mean, layer.running_var = place[1], torch.ones(width)
    layer.weight, layer.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
    with pytest.warns(UserWarning, match=r"bank of momenta .* begins again"):
        layer(torch.randn(64, width))
    assert (place[1] != 7).all()
    assert (place[0] == 7).all() and (place[2] == 7).all()


@pytest.mark.parametrize(("entry", "name"), each_tensor(four_kernels()))
def test_triton_refuses_a_tensor_that_does_not_fit(entry, name, monkeypatch):
    _triton = triton_kernels()
    monkeypatch.setattr(_triton, "INTERPRETED", True)
    monkeypatch.setattr(_triton, "_launch", lambda *_, **__: pytest.fail("compiled code has seen it"))
    assert_refused(_triton, entry, four_kernels()[entry], name)
