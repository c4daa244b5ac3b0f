import json
from dataclasses import replace

import pytest
import torch

import steadynorm
from steadynorm.bench import warmup as command
from steadynorm.bench.warmup import WarmupConfig, warmup
from steadynorm.reporting.failure import UserError


def test_shapes_decide_what_is_compiled(capsys):
    warmup(WarmupConfig(shapes=("64x32x32x32", "2x3x4x4"), activations=("relu",)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2x3x4x4: too small for the CPU kernels; torch's kernels run there"
    assert lines[1].startswith("[1/1] BatchNorm2d relu float32 contiguous: ")
    assert lines[2].split(" compiled in ")[0].endswith("functions")


def test_json_alone_is_on_standard_output(capsys):
    warmup(WarmupConfig(shapes=("64x32x32x32",), activations=("relu",), json=True))
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert [one["name"] for one in result["compiled"]] == ["BatchNorm2d relu float32 contiguous"]
    assert "[1/1]" in err


def test_equal_kinds_of_two_shapes_are_one():
    config = WarmupConfig(shapes=("64x32x32x32", "64x64x32x32", "200000x8"), activations=("relu",))
    trials, small = command._plan(config)
    assert (list(trials), small) == (
        ["BatchNorm2d relu float32 contiguous", "BatchNorm1d relu float32 channels_last"],
        [],
    )


def test_each_layout_of_each_rank_is_compiled_where_it_is_large_enough():
    both = ("contiguous", "channels_last")
    config = WarmupConfig(shapes=("64x64x1024", "32x64x16x16"), activations=("relu",), layouts=both)
    assert [name.replace(" relu float32", "") for name in command._plan(config)[0]] == [
        "BatchNorm1d contiguous",
        "BatchNorm1d channels_last",
        "BatchNorm2d contiguous",  # the other takes twice as many values
    ]


@pytest.mark.parametrize(
    ("options", "small"),
    [
        ({}, True),
        ({"residual": True}, False),
        ({"activations": ("relu",)}, False),
        ({"layers": ("batch_renorm",)}, False),
    ],
    ids=str,
)
def test_what_is_fused_and_what_torch_has_no_layer_for_is_compiled_sooner(options, small):
    config = replace(WarmupConfig(shapes=("16x16x32x24",), activations=("none",)), **options)
    assert command._plan(config)[1] == ["16x16x32x24"] * small


def test_what_is_compiled_is_what_its_name_says(monkeypatch):
    seen = []
    monkeypatch.setattr(steadynorm, "warmup", lambda layer, **given: seen.append((layer, given)) or [None])
    kinds = {"layers": ("ghost_batch_norm",), "dtypes": ("bfloat16",), "layouts": ("channels_last",)}
    trials, _ = command._plan(
        WarmupConfig(shapes=("64x64x32x32",), activations=("none", "silu"), residual=True, **kinds)
    )
    for trial in trials.values():
        trial()
    assert list(trials) == [f"GhostBatchNorm2d {each} bfloat16 channels_last" for each in ("none", "silu")]
    assert [(type(layer), layer.activation) for layer, _ in seen] == [
        (steadynorm.GhostBatchNorm2d, activation) for activation in (None, "silu")
    ]
    assert all(
        given == {"dtypes": (torch.bfloat16,), "layouts": ("channels_last",), "residual": True} for _, given in seen
    )


@pytest.mark.parametrize("shape", ["64", "64x", "axb", "0x3", "1x2x3x4x5x6"])
def test_what_is_no_shape_is_refused(shape):
    with pytest.raises(UserError, match="--shapes: must be two to five positive numbers"):
        warmup(WarmupConfig(shapes=(shape,)))


def test_without_numba_it_says_why(monkeypatch):
    monkeypatch.setattr(command, "why_unusable", lambda name: f"{name} has gone")
    with pytest.raises(UserError, match="cannot be used: numba has gone"):
        warmup(WarmupConfig())
