"""Find what only a layer's use shows: the spatial dimensions of its input, and whether it gets a residual."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from steadynorm.surgery.batches import Batch, Forward, evaluating
from steadynorm.surgery.contexts import input_of
from steadynorm.surgery.flow.trial import run
from steadynorm.surgery.kinds import channels_of, kind_of
from steadynorm.surgery.named_modules import NamedModule
from steadynorm.surgery.rebuild import DIMENSIONS

__all__ = ["Dimensions"]

_MAPS: dict[type[nn.Module], int | None] = {
    nn.Linear: None,
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}


class Dimensions:
    """Finds the number of spatial dimensions of a model's batch norms.

    The class decides if it takes only one number of dimensions. Otherwise the number comes from the layer's class
    before surgery, then from the example, then from the nearest convolutions with as many channels, if they agree. A
    linear layer with as many features takes input of any rank and decides nothing.

    Args:
        model: the root.
        norms: the layers to look at.
        example: a batch to run the model on; None runs nothing.
        forward: how to run it, see :func:`steadynorm.surgery.recalibrate_`.
    """

    def __init__(self, model: nn.Module, norms: list[NamedModule], example: Batch, forward: Forward | None) -> None:
        self._model = model
        self._seen: dict[int, int] = {}
        self._adding: set[int] = set()
        if example is not None and norms:
            self._look([named.module for named in norms], example, forward)

    def of(self, named: NamedModule) -> int | None:
        """Return the number for a layer; None if it is unknown."""
        own = kind_of(named.module)[1] or vars(named.module).get(DIMENSIONS, 0)
        return own or self._seen.get(id(named.module)) or self._of_neighbours(named)

    def adds_residual(self, module: nn.Module) -> bool:
        """Tell whether the example calls a layer with a residual."""
        return id(module) in self._adding

    def _look(self, wanted: list[nn.Module], example: Batch, forward: Forward | None) -> None:
        def see(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = input_of(arguments, named)
            if isinstance(x, Tensor):
                self._seen[id(module)] = max(x.dim() - 2, 1)
            residual = named.get("residual", arguments[1] if len(arguments) > 1 else None)
            if residual is not None:
                self._adding.add(id(module))

        handles = [module.register_forward_pre_hook(see, with_kwargs=True) for module in wanted]
        try:
            with evaluating(self._model):
                run(self._model, example, forward)
        finally:
            for handle in handles:
                handle.remove()

    def _of_neighbours(self, named: NamedModule) -> int | None:
        """Look at layers with as many input or output channels, in ever larger parts of the model around the norm."""
        path = named.name.split(".")[:-1]
        for end in range(len(path), -1, -1):
            maps = [each for each in self._model.get_submodule(".".join(path[:end])).modules() if type(each) in _MAPS]
            fit = {_MAPS[type(each)] for each in maps if channels_of(named.module) in _channels(each)}
            if fit:
                return fit.pop() if len(fit) == 1 else None
        return None


def _channels(module: nn.Module) -> list[int]:
    """Return a layer's numbers of input and output channels."""
    names = ("in_channels", "out_channels", "in_features", "out_features")
    return [int(getattr(module, name)) for name in names if hasattr(module, name)]
