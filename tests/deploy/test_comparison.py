import numpy as np
import pytest
from torch import nn

from steadynorm.deploy.comparison import TOLERANCE, Comparison
from steadynorm.deploy.results import Artifact
from steadynorm.reporting.failure import UserError


def compared(labels, *, quantize, outputs, max_drop=1.0):
    """Check a file with these outputs where the model's are right for the first labels."""
    expected = np.eye(2, dtype=np.float32)[[0] * 99 + [1]]
    given = {"scratch": None, "threads": 1, "expected": expected, "labels": labels, "max_drop": max_drop}
    comparison = Comparison(**given)
    artifact = Artifact(name="a", format="onnx", quantize=quantize)
    comparison.check(comparison.measured(artifact, outputs))


@pytest.mark.parametrize("labels", [None, np.array([0] * 99 + [1])], ids=["classes", "accuracy"])
def test_a_drop_of_just_the_limit_is_allowed(labels):
    outputs = np.eye(2, dtype=np.float32)[[0] * 100]
    compared(labels, quantize="dynamic", outputs=outputs)
    with pytest.raises(UserError, match=r"^1\.0 .*, more than the max drop of 0\.9\.$"):
        compared(labels, quantize="dynamic", outputs=outputs, max_drop=0.9)


@pytest.mark.parametrize("quantize", ["none", "dynamic"])
def test_outputs_that_are_not_finite_are_refused(quantize):
    outputs = np.eye(2, dtype=np.float32)[[0] * 99 + [1]]
    outputs[3, 1] = np.nan
    with pytest.raises(UserError, match=r"^its outputs are not finite\.$"):
        compared(None, quantize=quantize, outputs=outputs, max_drop=100.0)


def test_a_float_file_may_be_off_by_the_tolerance():
    outputs = np.eye(2, dtype=np.float32)[[0] * 99 + [1]]
    compared(None, quantize="none", outputs=outputs * (1 + 0.9 * TOLERANCE))
    with pytest.raises(UserError, match=r"^its outputs are off by 0\.0002 of the largest, more than 0\.0001\.$"):
        compared(None, quantize="none", outputs=outputs * (1 + 2 * TOLERANCE))


def test_zeros_in_place_of_zeros_are_no_error():
    zeros = np.zeros((3, 2), dtype=np.float32)
    comparison = Comparison(scratch=None, threads=1, expected=zeros, labels=None, max_drop=1.0)
    found = comparison.measured(Artifact(name="a", format="onnx", quantize="none"), zeros)
    assert (found.largest_error, found.relative_error, found.agreement) == (0, 0, 1)
    comparison.check(found)


def test_an_error_is_a_share_of_the_models_largest_output():
    expected = np.array([[4, 0], [0, 2]], dtype=np.float32)
    comparison = Comparison(scratch=None, threads=1, expected=expected, labels=None, max_drop=1.0)
    found = comparison.measured(Artifact(name="a", format="onnx", quantize="none"), expected - 1)
    assert (found.largest_error, found.relative_error) == (1, 0.25)


class Unpicklable(nn.Identity):
    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (ZeroDivisionError("by zero"), UserError, r"^the model cannot be pickled .*: ZeroDivisionError: by zero\. Def"),
        (OSError(28, "No space left on device"), OSError, "No space left"),
    ],
)
def test_a_model_that_cannot_be_pickled_is_one_line_and_a_full_disk_itself(tmp_path, error, raised, text):
    given = {"threads": 1, "expected": np.zeros((1, 1)), "labels": None, "max_drop": 1.0}
    model = Unpicklable()
    model.error = error
    with pytest.raises(raised, match=text):
        Comparison(scratch=tmp_path, **given).serve_eager(model)
