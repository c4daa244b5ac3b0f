import warnings

import pytest
import torch
from torch import nn

from steadynorm.deploy.graphs import Norm, check_graph, norms_in, norms_in_onnx, norms_in_program, norms_in_script
from steadynorm.reporting.failure import UserError

X = torch.randn(4, 3, 8, 8)


def model(*, training=False):
    parts = (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.03), nn.Dropout(0.5))
    return nn.Sequential(*parts).train(training)


def nodes(way, tmp_path, *, training):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way == "program":
            return norms_in_program(torch.export.export(model(training=training), (X,)))
        if way == "script":
            return norms_in_script(torch.jit.trace(model(training=training), X, check_trace=False))
        path = tmp_path / "model.onnx"
        keep = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(model(training=training), (X,), path, dynamo=False, training=keep, do_constant_folding=False)
        return norms_in_onnx(path)


@pytest.mark.parametrize("way", ["program", "script", "onnx"])
def test_a_graph_in_evaluation_mode_passes_with_its_own_constants(way, tmp_path):
    found = nodes(way, tmp_path, training=False)
    assert check_graph(found, norms_in(model()), what="it") <= 1
    (norm,) = [node for node in found if node.eps is not None] or [Norm(operation="", training=False, eps=1e-3)]
    assert norm.eps == pytest.approx(1e-3)
    assert norm.momentum in (None, 0.03)


@pytest.mark.parametrize("way", ["program", "script", "onnx"])
def test_a_graph_in_training_mode_is_refused(way, tmp_path):
    found = nodes(way, tmp_path, training=True)
    assert sum(node.training for node in found) == 2
    with pytest.raises(UserError, match="in training mode"):
        check_graph(found, norms_in(model()), what="it")


def test_other_constants_than_the_models_are_refused():
    expected = [(1e-3, 0.03), (1e-5, None)]
    check_graph([Norm(operation="n", training=False, eps=1e-3, momentum=0.03)], expected, what="it")
    with pytest.raises(UserError, match=r"1 batch norms have eps 1e-05, of the model's 0"):
        check_graph([Norm(operation="n", training=False, eps=1e-5)], [(1e-3, 0.03)], what="it")
    with pytest.raises(UserError, match=r"momentum 0\.1"):
        check_graph([Norm(operation="n", training=False, eps=1e-3, momentum=0.1)], expected, what="it")
    with pytest.raises(UserError, match=r"2 batch norms have eps 0\.001, of the model's 1"):
        check_graph([Norm(operation="n", training=False, eps=1e-3)] * 2, expected, what="it")


def test_an_instance_norm_without_statistics_is_no_fault():
    norm = nn.InstanceNorm2d(3).eval()
    program = torch.export.export(norm, (X,))
    assert check_graph(norms_in_program(program), [], what="it") == 0


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            x = torch.dropout(x, 0.5, True)
        return x


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:DeprecationWarning")
def test_a_branch_of_a_script_is_looked_into():
    (found,) = norms_in_script(torch.jit.script(Branching()))
    assert found.training
