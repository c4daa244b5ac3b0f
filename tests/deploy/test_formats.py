from dataclasses import replace

import pytest
import torch
from torch import nn

from steadynorm.deploy import FORMATS
from steadynorm.deploy.formats import Request
from steadynorm.reporting.failure import UserError

REQUEST = Request(model=nn.Identity(), example=torch.zeros(2, 3, 4, 4), calibration=())


@pytest.mark.parametrize(
    ("failure", "raised", "text"),
    [
        (
            ValueError("node 3 is odd\nmore"),
            UserError,
            r"^ONNX Runtime cannot hold this model: ValueError: node 3 is odd\.$",
        ),
        (UserError("there is no linear layer."), UserError, r"^there is no linear layer\.$"),
        (OSError(28, "No space left on device"), OSError, "No space left"),
    ],
)
def test_an_exporter_that_fails_halfway_leaves_no_file(failure, raised, text, tmp_path):
    def write_half(request, quantize, path):
        path.write_bytes(b"half")
        raise failure

    form = replace(FORMATS["onnx"], writer=write_half)
    with pytest.raises(raised, match=text):
        form.write(REQUEST, "none", tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
