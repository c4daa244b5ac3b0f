"""User networks: a function given as ``PACKAGE.MODULE:FUNCTION``, ``timm:NAME``, or ``hf:CONFIG``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.lab.functions import find_named, line_of
from steadynorm.lab.networks.logits import Logits
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.surgery.batches import evaluating

__all__ = ["Shape", "calls_code", "images", "is_given", "make_given", "run_once"]

TIMM, HUGGING_FACE = "timm:", "hf:"
CLASSES = ("classes", "num_classes")
CHANNELS = ("channels", "in_channels", "in_chans")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Data for which a network is built."""

    classes: int
    channels: int
    image_size: tuple[int, int]
    """Height and width of the images."""


def is_given(name: str) -> bool:
    """Whether a network is the user's."""
    return ":" in name


def calls_code(name: str) -> bool:
    """Whether it is a user function; the two packages build networks by name."""
    return is_given(name) and not name.startswith((TIMM, HUGGING_FACE))


def make_given(name: str, shape: Shape, seed: int) -> nn.Module:
    """Build a user's network under a seed, and check that it returns a row of logits for each image.

    torch's random state is restored afterwards. An output with ``logits`` is unwrapped.

    Raises:
        UserError: it cannot be found or built, or returns something else.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        if name.startswith(TIMM):
            model, how = _from_timm(name, shape, seed), f"--network {name}"
        elif name.startswith(HUGGING_FACE):
            model, how = Logits(_from_hugging_face(name, shape)), f"--network {name}"
        else:
            model, how = _from_function(name, shape)
        return run_once(model, shape, how)


def _from_function(name: str, shape: Shape) -> tuple[nn.Module, str]:
    """Call the user's function with the arguments it names, and return how."""
    found = find_named(name)
    if not callable(found):
        raise UserError(f"--network {name}: must be a function that builds a model, got {type(found).__name__}.")
    positional, named = _arguments(name, found, shape)
    said = ", ".join([*map(repr, positional), *(f"{key}={value!r}" for key, value in named.items())])
    how = f"--network {name}({said})"
    return _model(how, lambda: found(*positional, **named)), how


def _arguments(name: str, function: Callable[..., Any], shape: Shape) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Choose the arguments by a function's signature: those it names, or (classes, channels), or none."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # it has no readable signature
        return (), {}
    height, width = shape.image_size
    known: dict[str, Any] = dict.fromkeys(CLASSES, shape.classes) | dict.fromkeys(CHANNELS, shape.channels)
    known["image_size"] = height if height == width else shape.image_size
    named = {key: value for key, value in known.items() if _by_name(parameters, key)}
    has_rest = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if has_rest and not any(key in named for key in CLASSES):  # as in torchvision's functions
        named["num_classes"] = shape.classes
    needed = [
        key
        for key, each in parameters.items()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) and key not in named
    ]
    if not needed:
        return (), named
    if len(needed) <= 2 and not named:
        return (shape.classes, shape.channels)[: len(needed)], {}
    raise UserError(
        f"--network {name}: must take (classes, channels), or arguments among {', '.join(known)}, "
        f"got one that needs {', '.join(needed)}."
    )


def _by_name(parameters: Mapping[str, inspect.Parameter], name: str) -> bool:
    return name in parameters and parameters[name].kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


def _from_timm(name: str, shape: Shape, seed: int) -> nn.Module:
    _check_installed(name, "timm")
    import timm

    model = name.removeprefix(TIMM)
    if not timm.is_model(model):  # a name with a prefix would be fetched from a hub
        raise UserError(f"--network {name}: timm {timm.__version__} has no model of this name.")
    sizes = {"num_classes": shape.classes, "in_chans": shape.channels, "pretrained": False}

    def make() -> nn.Module:
        try:
            made: nn.Module = timm.create_model(model, img_size=shape.image_size, **sizes)
        except TypeError:  # for models that accept images of any size and lack this argument
            torch.manual_seed(seed)
            made = timm.create_model(model, **sizes)
        return made

    return _model(f"--network {name}", make)


def _from_hugging_face(name: str, shape: Shape) -> nn.Module:
    _check_installed(name, "transformers")
    from transformers import AutoConfig, AutoModelForImageClassification

    what = name.removeprefix(HUGGING_FACE)
    sizes: dict[str, Any] = {"num_labels": shape.classes, "num_channels": shape.channels}

    def make() -> nn.Module:
        config: Any = (
            AutoConfig.from_pretrained(what, local_files_only=True, trust_remote_code=False, **sizes)
            if Path(what).exists()
            else AutoConfig.for_model(what, **sizes)
        )
        if hasattr(config, "image_size"):
            height, width = shape.image_size
            config.image_size = height if height == width else shape.image_size
        build: Callable[..., nn.Module] = AutoModelForImageClassification.from_config
        return build(config, trust_remote_code=False)

    return _model(f"--network {name}", make)


def _check_installed(name: str, package: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"--network {name}: {package} is not installed. Run: pip install {package}")


def _model(how: str, make: Callable[[], Any]) -> nn.Module:
    try:
        model = make()
    except Exception as error:  # a user's function may raise anything
        raise UserError(f"{how}: failed with {one_line(error)}{line_of(error)}.") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{how}: must give a torch.nn.Module, got {type(model).__name__}.")
    return model


def images(model: nn.Module, shape: Shape) -> Tensor:
    """Return two images on the device of a model."""
    device = next((each.device for each in model.parameters()), torch.get_default_device())
    return torch.zeros(2, shape.channels, *shape.image_size, device=device)


def run_once(model: nn.Module, shape: Shape, how: str, *, backward: bool = False) -> nn.Module:
    """Run a model on two images, to report a model that does not accept them before any training.

    Args:
        model: runs on its own device, or on the meta device; lazy layers learn their sizes.
        shape: shape of the images.
        how: how it was made, for messages.
        backward: whether to take a step in its present mode; else it runs in evaluation mode and stays unchanged.

    Returns:
        the model; wrapped in :class:`Logits` if its output is an object with ``logits``.

    Raises:
        UserError: it fails, or returns no tensor of shape (2, classes).
    """
    x = images(model, shape)
    size = "x".join(map(str, x.shape[1:]))
    try:
        if backward:
            output = _output(model(x))
            if isinstance(output, Tensor) and output.requires_grad:
                output.float().square().sum().backward()  # type: ignore[no-untyped-call]
        else:
            with evaluating(model):
                output = model(x)
    except UserError:
        raise
    except Exception as error:  # a model's forward may raise anything
        told = f"failed on two images of {size} with {one_line(error)}{line_of(error)}"
        raise UserError(f"{how}: {told}.") from error
    if not isinstance(output, Tensor):
        model, output = Logits(model), _output(output)
    if not isinstance(output, Tensor) or output.shape != (2, shape.classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"{how}: must give shape (N, {shape.classes}) for images of {size}, got {found} for 2.")
    return model


def _output(output: Any) -> Any:  # noqa: ANN401 (whatever a model gives)
    return getattr(output, "logits", output)
