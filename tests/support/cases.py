"""The one table of inputs that every normalization is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.support import oracle

__all__ = [
    "CASES",
    "COMPILED",
    "FAULTY_CASES",
    "KINK_MARGIN",
    "LONG_CASES",
    "Case",
    "Inputs",
    "compiled",
    "each_case",
    "each_compiled",
    "each_faulty_case",
    "make_inputs",
    "reads_residual",
]

Layout = Literal["contiguous", "channels_last", "transposed", "sliced", "expanded"]
KINK_MARGIN = 0.05
"""Half-width of the band around an activation's kink in which rounding decides on which side a value lies."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What an input looks like."""

    id: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: Layout = "contiguous"
    mean: float = 0.3
    std: float = 2.0
    fault: float | None = None
    """Written into one value of channel 1."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Leaf tensors without gradient; weight and bias are float32, or float64 beside float64 data."""

    x: Tensor
    dy: Tensor
    """Random upstream gradient, zero where the derivative of an activation hangs on rounding."""
    residual: Tensor
    weight: Tensor
    bias: Tensor


CASES = (
    Case(id="one-channel", shape=(6, 1, 5, 4)),
    Case(id="prime-channels", shape=(5, 7, 3, 3)),
    Case(id="257-channels", shape=(4, 257)),
    # A spread near sqrt(eps): two values far apart normalize to ±1 whatever they are, and dx is only rounding.
    Case(id="two-values", shape=(2, 6), mean=0.001, std=0.003),
    Case(id="two-values-spatial", shape=(1, 6, 1, 2), mean=0.001, std=0.003),
    Case(id="zero-variance", shape=(4, 3, 5), mean=3.0, std=0.0),
    # Every channel's error is the luck of rounding its mean; over many channels the largest one is not luck.
    Case(id="large-mean", shape=(16, 61, 9), mean=1e4, std=1.0),
    Case(id="2d", shape=(33, 5)),
    Case(id="3d", shape=(6, 5, 11)),
    Case(id="5d", shape=(3, 4, 2, 3, 5)),
    Case(id="channels-last-2d", shape=(4, 6, 5, 3), layout="channels_last"),
    Case(id="channels-last-3d", shape=(3, 4, 2, 3, 5), layout="channels_last"),
    Case(id="transposed", shape=(4, 6, 5, 3), layout="transposed"),
    Case(id="sliced", shape=(4, 6, 5, 3), layout="sliced"),
    Case(id="expanded", shape=(8, 6, 5, 3), layout="expanded"),
    Case(id="float64", shape=(4, 6, 5, 3), dtype=torch.float64),
    Case(id="bfloat16", shape=(8, 6, 5, 3), dtype=torch.bfloat16),
    Case(id="bfloat16-channels-last", shape=(8, 6, 5, 3), dtype=torch.bfloat16, layout="channels_last"),
    Case(id="float16", shape=(8, 6, 5, 3), dtype=torch.float16),
)

# Beyond one run of float32 sums, and with rows that do not divide evenly among the threads.
LONG_CASES = (
    Case(id="long-planes", shape=(3, 5, 41, 43)),
    Case(id="long-planes-bfloat16", shape=(3, 5, 41, 43), dtype=torch.bfloat16),
    Case(id="long-rows", shape=(5, 17, 31, 7), layout="channels_last"),
    Case(id="long-rows-bfloat16", shape=(5, 17, 31, 7), layout="channels_last", dtype=torch.bfloat16),
    Case(id="long-planes-float16", shape=(3, 5, 41, 43), dtype=torch.float16),
    Case(id="long-rows-float16", shape=(5, 17, 31, 7), layout="channels_last", dtype=torch.float16),
    Case(id="very-large-mean-planes", shape=(16, 61, 9), mean=1e5, std=1.0),
    Case(id="very-large-mean-rows", shape=(16, 61, 3, 3), mean=1e5, std=1.0, layout="channels_last"),
    Case(id="short-rows", shape=(7, 13, 31, 5), layout="channels_last"),
    Case(id="short-rows-bfloat16", shape=(7, 50, 31, 5), layout="channels_last", dtype=torch.bfloat16),
    Case(id="wide-rows", shape=(7, 261, 31, 5), layout="channels_last"),
    Case(id="wide-rows-bfloat16", shape=(7, 261, 31, 5), layout="channels_last", dtype=torch.bfloat16),
)


def reads_residual(case: Case) -> tuple[bool, ...]:
    """Say with which residuals a case is tested by relu: with and without, or one of them in half precision."""
    if case.dtype == torch.float32:
        return (False, True)
    return ((case.dtype == torch.bfloat16) != (case.layout == "channels_last"),)


_LONG = {case.id.removeprefix("long-"): case for case in LONG_CASES}
COMPILED: tuple[tuple[Case, str | None, bool], ...] = (
    *((case, "relu", residual) for case in (*CASES, *LONG_CASES) for residual in reads_residual(case)),
    (_LONG["planes"], None, True),
    (_LONG["planes"], "leaky_relu", False),
    (_LONG["planes"], "silu", True),
    (_LONG["rows"], None, False),
    (_LONG["rows"], "leaky_relu", True),
    (_LONG["rows"], "silu", False),
    (_LONG["planes-bfloat16"], "leaky_relu", False),
    (_LONG["rows-bfloat16"], None, True),
    (_LONG["rows-bfloat16"], "silu", True),
    (_LONG["planes-float16"], None, True),
    (_LONG["planes-float16"], "silu", False),
    (_LONG["rows-float16"], "leaky_relu", True),
)
"""Case, activation, whether there is a residual: what kernels are tested on that are compiled for each of them.

Every two values of dtype, layout, activation and residual meet (a test counts them). That suffices: a kernel is put
together of reading a dtype, walking a layout, an activation in float32, and a residual or none, each written once. All
four together would be half as many kernels again, and those of half precision compile for half a minute.
"""

FAULTY_CASES = tuple(
    Case(id=f"{name}-{dtype}".replace("torch.", ""), shape=(4, 3, 5), fault=fault, dtype=dtype)
    for name, fault in (("nan", float("nan")), ("inf", float("inf")), ("minus-inf", -float("inf")))
    for dtype in (torch.float32, torch.bfloat16)
)

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def compiled(case: Case, activation: str | None = "relu", *more: object, id: str = "") -> object:
    """Make a parameter of a test whose kernel compiles for long in half precision, above all over rows."""
    rows, half = case.layout == "channels_last", case.dtype != torch.float32
    long = activation != "relu" or rows if half else rows and activation in (None, "silu")
    return pytest.param(case, *more, id=id or case.id, marks=pytest.mark.slow if long else ())


each_compiled = pytest.mark.parametrize(
    ("case", "activation", "with_residual"),
    [
        compiled(*one[:2], *one[1:], id=f"{one[0].id}-{one[1]}-{'residual' if one[2] else 'plain'}")
        for one in COMPILED
        if one[0].dtype != torch.float64  # which no compiled kernel takes
    ],
)
each_faulty_case = pytest.mark.parametrize("case", FAULTY_CASES, ids=lambda case: case.id)


def make_inputs(case: Case, *, seed: int = 0) -> Inputs:
    """Draw what a forward and a backward need."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    channels = case.shape[1]
    wide = torch.promote_types(case.dtype, torch.float32)
    x = _laid_out(normal(*case.shape) * case.std + case.mean, case)
    residual = normal(*case.shape).to(case.dtype)
    weight, bias = (normal(channels) + 1).to(wide), normal(channels).to(wide)
    dy = normal(*case.shape)
    if case.fault is None:
        # Leaning towards y, so that sums over a channel do not happen to cancel to a value that is all rounding.
        dy += torch.from_numpy(oracle.batch_norm(x).y) + 0.5
        for added in (None, residual):
            before = oracle.batch_norm(x, weight=weight, bias=bias, residual=added).before_activation
            dy[torch.from_numpy(abs(before) < KINK_MARGIN)] = 0
    return Inputs(x=x, dy=dy.to(case.dtype), residual=residual, weight=weight, bias=bias)


def _laid_out(values: Tensor, case: Case) -> Tensor:
    """Give the values in the case's dtype and strides."""
    x = values.to(case.dtype)
    if case.fault is not None:
        x.select(1, 1)[(0,) * (x.dim() - 1)] = case.fault
    if case.layout == "channels_last":
        order = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        return x.contiguous(memory_format=order)
    if case.layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if case.layout == "sliced":
        wider = torch.full([2 * size for size in case.shape], float("nan"), dtype=case.dtype)
        view = wider[tuple(slice(1, None, 2) for _ in case.shape)]
        return view.copy_(x)
    if case.layout == "expanded":
        return x[..., :1].expand(case.shape)
    return x
