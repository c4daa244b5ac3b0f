"""That the table of what compiled kernels are tested on leaves out no pair."""

from itertools import combinations, product

import torch

from tests.support.cases import COMPILED

FACTORS = (
    (torch.float32, torch.bfloat16, torch.float16),
    ("planes", "rows"),
    (None, "relu", "leaky_relu", "silu"),
    (False, True),
)


def test_every_two_of_dtype_layout_activation_and_residual_meet():
    rows = [
        (case.dtype, "rows" if case.layout == "channels_last" else "planes", activation, residual)
        for case, activation, residual in COMPILED
    ]
    for one, other in combinations(range(4), 2):
        met = {(row[one], row[other]) for row in rows}
        assert set(product(FACTORS[one], FACTORS[other])) <= met
