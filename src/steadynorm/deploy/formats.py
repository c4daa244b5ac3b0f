"""Table of the export formats and their quantisation."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from shutil import which
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.deploy.graphs import check_graph, norms_in, norms_in_onnx, norms_in_program, norms_in_script
from steadynorm.reporting.failure import UserError, one_line

__all__ = ["FORMATS", "QUANTIZATIONS", "Format", "Request"]

QUANTIZATIONS = ("none", "dynamic", "static")
"""dynamic: weights beforehand and activations as they come; static: both beforehand."""
INSTALL = "Run: pip install 'steadynorm[deploy]'"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A model to write, with example inputs and calibration data."""

    model: nn.Module
    """The model, in evaluation mode, made of torch's own operations."""
    example: Tensor
    """Images, float32 of shape (N, 3, H, W), N at least 2; the size is exported, the batch stays free. It is stored in
    some formats, with the whole of what it is a view of."""
    calibration: Sequence[Tensor]
    """Batches of training images, in which static quantisation sees the ranges of activations."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format."""

    title: str
    suffix: str
    serving: str
    """File that shows how it is served."""
    writer: Callable[[Request, str, Path], str]
    """Writes a file, quantised as the name says, and says what it holds, in a sentence."""
    needs: tuple[str, ...] = ()
    """Packages to write and to serve it, beyond torch."""
    lacking: dict[str, str] = field(default_factory=dict)
    """Unsupported quantisation -> why, and the alternative."""
    compiles: bool = False
    """Whether a C++ compiler is needed."""

    def absent(self) -> str:
        """Say what this machine lacks; empty if the format can be written."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            return f"not installed: {', '.join(missing)}. {INSTALL}"
        if self.compiles and not _compiler():
            return "AOTInductor needs a C++ compiler, found none. Install g++, or set CXX."
        return ""

    def write(self, request: Request, quantize: str, path: Path) -> str:
        """Write a model to a file.

        Returns:
            what it holds, in a sentence.

        Raises:
            UserError: the format has no such quantisation, or cannot hold this model; nothing is written.
        """
        if quantize in self.lacking:
            raise UserError(self.lacking[quantize])
        try:
            with _quiet(), torch.no_grad():
                return self.writer(request, quantize, path)
        except (UserError, OSError):  # a full disk is not the format's fault
            path.unlink(missing_ok=True)
            raise
        except Exception as error:  # an exporter fails in any way; the file is then worthless
            path.unlink(missing_ok=True)
            raise UserError(f"{self.title} cannot hold this model: {one_line(error)}.") from error


def _write_script(request: Request, quantize: str, path: Path) -> str:
    model, note = request.model, ""
    if quantize == "dynamic":
        model, note = _quantised_linear(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = torch.jit.freeze(torch.jit.trace(model, request.example))  # type: ignore[no-untyped-call]
    mine = [one for one in caught if issubclass(one.category, torch.jit.TracerWarning)]  # type: ignore[attr-defined]
    branches = len({(one.filename, one.lineno) for one in mine})  # the trace is checked, so each comes twice
    check_graph(norms_in_script(traced), norms_in(request.model), what="the TorchScript")
    traced.save(str(path))
    note += "Traced and frozen. torch marks TorchScript deprecated: prefer torch.export."
    if branches:
        places = "one place" if branches == 1 else f"{branches} places"
        note += f" The model decides by its data in {places}; the trace holds what the example led to."
    return note


def _quantised_linear(model: nn.Module) -> tuple[nn.Module, str]:
    """Quantise a copy's linear layers with torch, and report their share of the parameters."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError("dynamic quantisation covers linear layers, of which the model has none. Use static.")
    share = sum(module.weight.numel() for module in linear) / sum(each.numel() for each in model.parameters())
    quantised = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
        deepcopy(model), {nn.Linear}, dtype=torch.qint8
    )
    layers = "One linear layer" if len(linear) == 1 else f"{len(linear)} linear layers"
    return quantised, f"{layers} in int8, {100 * share:.2g} % of the parameters; convolutions stay float. "


def _write_program(request: Request, quantize: str, path: Path) -> str:
    torch.export.save(_program(request, quantize), path)
    if quantize == "static":
        return "Weights and activations in int8; runs by torch's reference operations, so it is not faster than float."
    return "An exported program; it runs by torch's own operations."


def _write_compiled(request: Request, quantize: str, path: Path) -> str:
    from torch._inductor import aoti_compile_and_package, config

    with config.patch({"freezing": True}):
        aoti_compile_and_package(_program(request, quantize), package_path=str(path))
    if quantize == "static":
        return "Weights and activations in int8, compiled for this kind of processor."
    return "Compiled for this kind of processor."


def _program(request: Request, quantize: str) -> torch.export.ExportedProgram:
    model = _quantised(request) if quantize == "static" else request.model
    program = torch.export.export(model, (request.example,), dynamic_shapes=_free_batch())
    ours = [str(node.target) for node in program.graph.nodes if str(node.target).startswith("steadynorm")]
    if ours:
        raise UserError(f"{ours[0]} would need steadynorm where it is served: surgery.to_torch_(model) first.")
    check_graph(norms_in_program(program), norms_in(request.model), what="the exported program")
    return program


def _quantised(request: Request) -> nn.Module:
    """Quantise an exported program for x86 with torchao: weights per channel, activations per tensor, both int8."""
    if find_spec("torchao") is None:
        raise UserError(f"static quantisation needs torchao, which is not installed. {INSTALL}")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(_program(request, "none").module(), quantizer)
    for images in request.calibration:
        prepared(images)
    converted: nn.Module = convert_pt2e(prepared)
    return converted


def _write_onnx(request: Request, quantize: str, path: Path) -> str:
    if quantize == "none":
        return _write_float_onnx(request, path)
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain, ready = path.with_name(f"{path.stem}.float.onnx"), path.with_name(f"{path.stem}.ready.onnx")
    try:
        _write_float_onnx(request, plain)
        quant_pre_process(plain, ready)
        return (_quantise_onnx_linear if quantize == "dynamic" else _quantise_onnx)(request, ready, path)
    finally:
        plain.unlink(missing_ok=True)
        ready.unlink(missing_ok=True)


def _write_float_onnx(request: Request, path: Path) -> str:
    torch.onnx.export(
        request.model,
        (request.example,),
        str(path),
        dynamo=True,
        dynamic_shapes=_free_batch(),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    check_graph(norms_in_onnx(path), norms_in(request.model), what="the ONNX file")
    import onnx

    opset = max(each.version for each in onnx.load(path).opset_import)
    return f"Opset {opset}, by torch's exporter."


def _quantise_onnx_linear(request: Request, source: Path, path: Path) -> str:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, path, op_types_to_quantize=["MatMul", "Gemm"])
    return "Linear layers in int8; convolutions stay float."


def _quantise_onnx(request: Request, source: Path, path: Path) -> str:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(request.calibration)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.rest, None)
            return None if images is None else {"images": images.numpy()}

    quantize_static(
        source,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=not _sums_int8_exactly(),
    )
    return "Weights and activations in int8, by ONNX Runtime; weights per channel."


def _sums_int8_exactly() -> bool:
    """Return whether the processor sums int8 products in 32 bits; older x86 ones saturate at 16 and need 7-bit weights.

    Source: ONNX Runtime's documentation of quantisation, "When to use reduce-range".
    """
    from steadynorm.ops._numba_simd import has_feature

    return platform.machine() not in ("x86_64", "AMD64") or has_feature("avx512vnni") or has_feature("avxvnni")


def _free_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch", min=1)},)


def _compiler() -> str | None:
    import os

    return next((found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := which(name))), None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' output and warnings, on which the user cannot act."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


_TORCH_DYNAMIC = "torch's dynamic quantisation is made for eager modules. Take torchscript or onnx."
_TORCH_STATIC = "torch quantises convolutions through torch.export. Take torch-export, aotinductor or onnx."

FORMATS: dict[str, Format] = {
    "torchscript": Format(
        title="TorchScript",
        suffix=".pt",
        serving="torchscript.py",
        writer=_write_script,
        lacking={"static": _TORCH_STATIC},
    ),
    "torch-export": Format(
        title="torch.export",
        suffix=".pt2",
        serving="torch_export.py",
        writer=_write_program,
        lacking={"dynamic": _TORCH_DYNAMIC},
    ),
    "aotinductor": Format(
        title="AOTInductor",
        suffix=".pt2",
        serving="aotinductor.py",
        writer=_write_compiled,
        lacking={"dynamic": _TORCH_DYNAMIC},
        compiles=True,
    ),
    "onnx": Format(
        title="ONNX Runtime",
        suffix=".onnx",
        serving="onnx.py",
        writer=_write_onnx,
        needs=("onnx", "onnxruntime", "onnxscript"),
    ),
}
"""Value of ``--format`` -> format."""
