"""Check the batch norms in an exported graph: no training mode, and the model's own eps and momentum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steadynorm.reporting.failure import UserError

__all__ = ["Norm", "check_graph", "norms_in", "norms_in_onnx", "norms_in_program", "norms_in_script"]

TRAINING = ("training", "train")
"""Arguments of torch's operations that choose between training and evaluation."""


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A node that has a training and an evaluation mode."""

    operation: str
    training: bool
    eps: float | None = None
    """None if it is not a batch norm."""
    momentum: float | None = None
    """In torch's convention, the weight of the new batch; None if the format has none."""


def norms_in(model: nn.Module) -> list[tuple[float, float | None]]:
    """Return (eps, momentum) of every batch norm of a model.

    Args:
        model: the root module.

    Returns:
        one pair for each batch norm, in model order; momentum is None for a cumulative average.
    """
    return [
        (float(module.eps), None if module.momentum is None else float(module.momentum))
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]


def check_graph(nodes: list[Norm], expected: list[tuple[float, float | None]], *, what: str) -> int:
    """Check that a graph does not train and that its batch norms have the model's constants.

    Args:
        nodes: nodes of the graph.
        expected: (eps, momentum) of the model's batch norms; a momentum of None is not compared.
        what: name of the graph, for the message.

    Returns:
        the number of batch norms in the graph. It may be less than the model's: an exporter may fold some.

    Raises:
        UserError: a node is in training mode, or a batch norm has another eps or momentum.
    """
    training = [node.operation for node in nodes if node.training]
    if training:
        raise UserError(f"{what}: holds {training[0]} in training mode. Export the model in evaluation mode.")
    norms = [node for node in nodes if node.eps is not None]
    allowed = Counter(_rounded(eps) for eps, _ in expected)
    for eps, count in Counter(_rounded(node.eps or 0.0) for node in norms).items():
        if count > allowed[eps]:
            raise UserError(f"{what}: {count} batch norms have eps {eps:g}, of the model's {allowed[eps]}.")
    momenta = {_rounded(momentum) for _, momentum in expected if momentum is not None}
    for node in norms:
        if node.momentum is not None and momenta and _rounded(node.momentum) not in momenta:
            raise UserError(f"{what}: a batch norm has momentum {node.momentum:g}, no batch norm of the model does.")
    return len(norms)


def norms_in_program(program: torch.export.ExportedProgram) -> list[Norm]:
    """Return the nodes of an exported program that have two modes."""
    found: list[Norm] = []
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            names = [argument.name for argument in node.target._schema.arguments]
            values = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
            found += _norm(str(node.target), names, values)
    return found


def norms_in_script(module: torch.jit.ScriptModule) -> list[Norm]:
    """Return the nodes of a TorchScript module that have two modes."""
    found: list[Norm] = []
    for node in _nodes(module.inlined_graph):
        if node.kind().startswith("aten::") and node.schema() != "(no schema)":
            names = [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]
            values = dict(zip(names, (value.toIValue() for value in node.inputs()), strict=False))
            found += _norm(node.kind(), names, values)
    return found


def norms_in_onnx(path: Path) -> list[Norm]:
    """Return the nodes of an ONNX file that have two modes."""
    import onnx

    model = onnx.load(path)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    found: list[Norm] = []
    for node in model.graph.node:
        values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "BatchNormalization":
            training = bool(values.get("training_mode", 0))
            found.append(Norm(operation=node.op_type, training=training, eps=float(values.get("epsilon", 1e-5))))
        elif node.op_type == "Dropout":
            mode = constants.get(node.input[2]) if len(node.input) > 2 else None
            found.append(Norm(operation=node.op_type, training=mode is not None and bool(mode)))
    return found


def _norm(operation: str, names: list[str], values: Mapping[str, Any]) -> Iterator[Norm]:
    modes = [name for name in TRAINING if name in names]
    is_norm = "batch_norm" in operation and "eps" in names
    if modes or is_norm:
        training = any(values.get(name) is True for name in modes)
        eps, momentum = (values.get(name) if is_norm else None for name in ("eps", "momentum"))
        yield Norm(operation=operation, training=training, eps=eps, momentum=momentum)


def _nodes(graph: Any) -> Iterator[Any]:  # noqa: ANN401 (torch has no type for it)
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _nodes(block)


def _rounded(value: float) -> float:
    """Round to float32, the type of ONNX attributes."""
    return float(f"{value:.6g}")
