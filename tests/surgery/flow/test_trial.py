"""How far outputs are apart, and how a model is given its example."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from steadynorm.surgery.flow.trial import check_agreement, differences, run, tensors_in


class Sum(nn.Module):
    def forward(self, x, y=None, *, scale=1.0):
        return (x if y is None else x + y) * scale


ONE, TWO = torch.ones(2), torch.full((2,), 2.0)


@pytest.mark.parametrize(
    ("example", "forward", "expected"),
    [
        (ONE, None, 1),
        ((ONE, TWO), None, 3),
        ([ONE, TWO], None, 3),
        ({"x": TWO, "scale": 3.0}, None, 6),
        ({"image": TWO}, lambda model, batch: model(batch["image"], scale=5), 10),
    ],
)
def test_an_example_is_the_arguments_of_a_model(example, forward, expected):
    assert run(Sum(), example, forward).tolist() == [expected] * 2


@dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...]


def test_tensors_are_found_in_objects_with_their_paths():
    found = [path for path, _ in tensors_in([{"a": Result(ONE, (TWO,))}, 3, "x"])]
    assert found == ["the output[0]['a'].logits", "the output[0]['a'].hidden[0]"]


def test_error_is_relative_to_the_largest_finite_magnitude():
    (found,) = differences(torch.tensor([4.0, -8.0, math.inf]), torch.tensor([4.5, -8.0, math.inf]))
    assert (found.error, found.relative) == (0.5, 0.0625)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_agrees_with_itself_and_with_nothing_else(value):
    old = torch.tensor([1.0, value])
    assert differences(old, old.clone())[0].error == 0
    assert differences(old, torch.tensor([1.0, 2.0]))[0].relative == math.inf
    assert differences(torch.tensor([1.0, 2.0]), old)[0].relative == math.inf


def test_an_error_where_all_was_zero_is_infinite():
    assert differences(torch.zeros(2), torch.tensor([0.0, 1e-9]))[0].relative == math.inf


def test_both_parts_of_complex_numbers_are_compared():
    (found,) = differences(torch.tensor([3 + 4j]), torch.tensor([3 + 4.5j]))
    assert found.error == 0.5


def test_decisions_must_be_the_same_but_for_a_share_that_is_asked_for():
    old, new = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 7])
    with pytest.raises(RuntimeError, match=r"the output.*torch\.int64.*2\.5e-01"):
        check_agreement("fold_", old, new, tolerance=None)
    assert check_agreement("fold_", old, new, tolerance=0.25)["largest_relative_error"] == 0.25


@pytest.mark.parametrize(
    ("dtype", "fine", "wrong"),
    [
        (torch.float64, 1e-11, 1e-9),
        (torch.float32, 5e-5, 5e-4),
        (torch.float16, 5e-3, 5e-2),
        (torch.bfloat16, 3e-2, 1e-1),
    ],
)
def test_the_tolerance_goes_by_the_coarsest_dtype(dtype, fine, wrong):
    old = torch.ones(2, dtype=torch.float64)
    check_agreement("fold_", old, old * (1 + fine), tolerance=None, dtypes=[torch.float64, dtype])
    with pytest.raises(RuntimeError, match="fold_: outputs must stay as they were"):
        check_agreement("fold_", old, old * (1 + wrong), tolerance=None, dtypes=[torch.float64, dtype])


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(2, dtype=torch.float64), None, [ONE]])
def test_another_form_of_output_is_an_error(other):
    with pytest.raises(RuntimeError, match="of the same form before and after"):
        differences(ONE, other)


def test_no_tensor_is_nothing_to_compare():
    with pytest.raises(ValueError, match=r"at least one tensor.*Return the model.s output"):
        check_agreement("fold_", None, None, tolerance=None)
