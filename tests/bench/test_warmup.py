import json

import pytest

from steadynorm.bench import warmup as command
from steadynorm.bench.warmup import WarmupConfig, warmup
from steadynorm.reporting.failure import UserError


def test_shapes_decide_what_is_compiled(capsys):
    warmup(WarmupConfig(shapes=("64x32x32x32", "2x3x4x4"), activations=("relu",)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2x3x4x4: too small for the CPU kernels; torch's own run there"
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


@pytest.mark.parametrize("shape", ["64", "64x", "axb", "0x3", "1x2x3x4x5x6"])
def test_what_is_no_shape_is_refused(shape):
    with pytest.raises(UserError, match="--shapes: must be two to five positive numbers"):
        warmup(WarmupConfig(shapes=(shape,)))


def test_without_numba_it_says_why(monkeypatch):
    monkeypatch.setattr(command, "why_unusable", lambda name: f"{name} has gone")
    with pytest.raises(UserError, match="must be usable, but numba has gone"):
        warmup(WarmupConfig())
