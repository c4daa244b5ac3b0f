import itertools
from typing import Any

import torch

from steadynorm.bench.cases import COPIES, SHAPES, Case, GridFlags, Op, make_grid
from steadynorm.lab.networks import build_network
from steadynorm.layers import BatchNorm2d

OPS: tuple[Op, ...] = ("norm_relu",)
ALONE: dict[str, Any] = {"dtypes": ("float32",), "layouts": ("contiguous",)}


def resnet50_norm_inputs(image: int = 224) -> list[tuple[int, int, int]]:
    """Walk through the bottleneck blocks: 1x1, 3x3 (the one that may be strided), 1x1 to four times the width."""
    found = [(64, image // 2, image // 2)]
    size = image // 4
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            found.append((width, size, size))
            size //= 2 if stage > 0 and block == 0 else 1
            found += [(width, size, size), (4 * width, size, size)]
    return found


def test_the_shapes_of_resnet50_are_those_of_its_norms() -> None:
    assert len(set(SHAPES["resnet50"])) == 12
    assert set(SHAPES["resnet50"]) == set(resnet50_norm_inputs())


def test_the_shapes_of_the_cnn_are_those_of_the_labs_network() -> None:
    seen = []
    model = build_network("cnn", arm="batch_norm", depth=6, widths=(32, 64, 128), classes=10, seed=0)
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[1:])))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert tuple(dict.fromkeys(seen)) == SHAPES["cnn"]


def test_the_default_batches_are_one_thirty_two_and_the_largest_that_fits() -> None:
    cases, _ = make_grid(OPS, GridFlags(), max_mb=128)
    batches: dict[tuple[int, ...], list[int]] = {}
    for case in cases:
        if (case.dtype, case.layout) == ("float32", "contiguous"):
            batches.setdefault(case.shape[1:], []).append(case.shape[0])
    assert batches[64, 112, 112] == [1, 32]  # 103 MB, and 411 MB with 128
    assert batches[128, 28, 28] == [1, 32, 256]  # 103 MB
    assert batches[64, 56, 56] == [1, 32, 128]


def test_the_largest_batch_is_one_of_five() -> None:
    flags = GridFlags(shapes=("resnet50",), **ALONE)
    first = [make_grid(OPS, flags, max_mb=bound)[0][:3] for bound in (3, 30, 102.760448, 420, 830)]
    # An image is 3.2 MB, 32 are exactly the third bound.
    batches = [[case.shape[0] for case in cases if case.shape[1:] == (64, 112, 112)] for cases in first]
    assert batches == [[], [1, 8], [1, 32], [1, 32, 128], [1, 32, 256]]


def test_the_default_grid_is_of_the_size_that_the_documentation_says() -> None:
    cases, skipped = make_grid(OPS, GridFlags(), max_mb=128)
    assert (len(cases), skipped) == (168, {})
    assert len({case.label for case in cases}) == 168


def test_every_combination_that_was_asked_for_is_there_once() -> None:
    ops: tuple[Op, ...] = ("norm", "norm_relu_residual")
    cases, _ = make_grid(ops, GridFlags(shapes=("cnn",), batches=(2, 3)), max_mb=128)
    kinds = itertools.product(ops, ("float32", "bfloat16"), ("contiguous", "channels_last"))
    expected = [(*kind, shape, batch) for kind in kinds for shape in SHAPES["cnn"] for batch in (2, 3)]
    found = [(case.op, case.dtype, case.layout, case.shape[1:], case.shape[0]) for case in cases]
    assert found == expected
    assert {case.network for case in cases} == {"cnn"}


def test_what_is_too_large_or_too_small_is_skipped_with_the_reason() -> None:
    flags = GridFlags(shapes=("cnn",), batches=(1, 2), **ALONE)
    cases, skipped = make_grid(OPS, flags, max_mb=0.131072, min_mb=0.065536)
    assert {case.shape: reason for case, reason in skipped.items()} == {
        (2, 32, 32, 32): "x is larger than --max-mb 0.131072",
        (1, 128, 8, 8): "x is smaller than --min-mb 0.065536",
    }
    shapes = [case.shape for case in cases]
    assert (1, 32, 32, 32) in shapes  # exactly as large as allowed
    assert (1, 64, 16, 16) in shapes  # exactly as small


def test_the_least_traffic_counts_every_pass() -> None:
    forward = {"norm": ["x", "x", "y"], "norm_relu_residual": ["x", "x", "residual", "y"]}
    backward = {
        "norm": ["x", "dy", "x", "dy", "dx"],
        "norm_relu_residual": ["x", "dy", "residual", "x", "dy", "residual", "dx", "d_residual"],
    }
    for op in ("norm", "norm_relu_residual"):
        assert 2 * COPIES[op] == len(forward[op] + backward[op])  # a copy is two passes
    assert COPIES["norm_relu"] == COPIES["norm"]


def test_bytes_follow_shape_and_dtype() -> None:
    case = Case(op="norm_relu_residual", network="cnn", shape=(2, 3, 5, 7), dtype="bfloat16", layout="contiguous")
    assert case.x_bytes == 2 * 3 * 5 * 7 * 2
    assert case.floor_bytes == 12 * case.x_bytes


def test_a_label_says_all() -> None:
    case = Case(op="norm", network="cnn", shape=(2, 3, 5, 7), dtype="bfloat16", layout="channels_last")
    assert case.label == "norm 2x3x5x7 bfloat16 channels_last"
