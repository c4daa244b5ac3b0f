"""Record a model's forwards: their purpose, the running statistics before and after, the classes of each batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steadynorm.doctor.watch.classes import ClassCounts, logits_of
from steadynorm.doctor.watch.recorder import Layout, Momenta, Rows
from steadynorm.ops.observers import is_recomputing, is_recorded, is_transformed
from steadynorm.surgery.contexts import is_on_copies, outside_graphs
from steadynorm.surgery.kinds import Norm
from steadynorm.surgery.named_modules import NamedModule

__all__ = ["EVALUATION", "NO_GRADIENT", "RECOMPUTATION", "TRAINING", "Listener"]

TRAINING = "training"
EVALUATION = "evaluation"
NO_GRADIENT = "a forward without gradient"
RECOMPUTATION = "activation checkpointing"
UNHEARD = "nothing a watch looks at"
_CHECKPOINT = str(Path("torch", "utils", "checkpoint.py"))


_FAKE = torch._C._TorchDispatchModeKey.FAKE


def silent(*arguments: Any) -> None:  # noqa: ANN401 (as any hook is called)
    """Do nothing: replaces a listener's hooks in a copy of the model."""


def _silence() -> Callable[..., None]:
    return silent


class _Hook:
    """A hook that is dropped from copies of the module made by deepcopy, pickle or torch.save."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> None:  # noqa: ANN401 (as torch gives them)
        self._call(*arguments)

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return silent

    def __reduce__(self) -> tuple[Any, ...]:
        return _silence, ()


def _keep_out_of_graphs() -> None:
    """Exclude hooks from compilation: those of a model compiled in place would become part of its graph."""
    if "torch._dynamo" in sys.modules and not hasattr(_Hook.__call__, "_torchdynamo_disable"):
        _Hook.__call__ = torch.compiler.disable(_Hook.__call__)  # type: ignore[method-assign, no-untyped-call, unused-ignore]


class Listener:
    """Record the running statistics over a stretch of training forwards.

    A forward is the outermost call of the model or of one of its direct children; for a compiled model, only the call
    of the model. Forwards under function transforms, tracing or export are ignored, as
    are those on tensors without values, or in a context that stops updates of running statistics.

    Args:
        model: the root.
        layers: layers with running statistics, each once.
        every: forwards in a stretch.
        on_full: called before the forward that follows a full stretch.
        on_evaluation: called before a forward in evaluation.
        on_moved: called if the layers' dtype or device changed; the stretch starts again.
        on_lost: called with the reason if layers can no longer be read.
        guarded: whether to restore running statistics after a forward that made them not finite, or that activation
            checkpointing recomputed.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[NamedModule],
        *,
        every: int,
        on_full: Callable[[], None],
        on_evaluation: Callable[[], None],
        on_moved: Callable[[], None],
        on_lost: Callable[[str], None],
        guarded: bool,
    ) -> None:
        self.layouts = Layout.of(layers)
        self.layers = tuple(each for layout in self.layouts for each in layout.layers)
        self.rows = [Rows(layout, every) for layout in self.layouts]
        self.momenta: list[Momenta] = []
        """Momenta of the layers at each training forward of the stretch."""
        self.classes: ClassCounts | None = None
        self.others: dict[str, int] = {}
        """Forwards of the stretch outside training."""
        self._model, self._every, self._guarded = model, every, guarded
        self._on_full, self._on_evaluation, self._on_moved, self._on_lost = on_full, on_evaluation, on_moved, on_lost
        self._modules: list[Norm] = [each.module for each in self.layers]
        self._inside: list[nn.Module] = []
        self._purpose = UNHEARD
        self._handles: list[RemovableHandle] = []

    @property
    def is_on(self) -> bool:
        """Whether it listens."""
        return bool(self._handles)

    def start(self) -> None:
        """Register the hooks."""
        if self._handles:
            return
        _keep_out_of_graphs()
        is_compiled = self._model._compiled_call_impl is not None or hasattr(self._model, "_orig_mod")
        children = () if is_compiled else self._model.children()  # a hook of theirs would break the graph
        for module in dict.fromkeys((self._model, *children)):
            self._handles.append(module.register_forward_pre_hook(_Hook(self._enter)))
            self._handles.append(module.register_forward_hook(_Hook(self._leave), always_call=True))

    def stop(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._inside = [], []

    def clear(self) -> None:
        """Begin the next stretch."""
        self.momenta, self.others = [], {}
        for rows in self.rows:
            rows.moved.zero_()
        if self.classes is not None:
            self.classes.clear()

    def classes_of(self, forwards: int) -> Tensor | None:
        """Return the class counts of the stretch's first forwards, (forwards, K), on the CPU; None if unknown."""
        if self.classes is None or bool(self.classes.unread[:forwards].any()):
            return None
        return self.classes.values[:forwards].cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded part of the stretch."""
        filled, classes = len(self.momenta), self.classes
        return {
            "layers": [each.name for each in self.layers],
            "every": self._every,
            "rows": [rows.values[:filled].clone() for rows in self.rows],
            "calls": [rows.calls[:filled].clone() for rows in self.rows],
            "moved": [rows.moved.clone() for rows in self.rows],
            "momenta": [list(row) for row in self.momenta],
            "others": dict(self.others),
            "classes": None if classes is None else [classes.classes, classes.values.clone(), classes.unread.clone()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the stretch of another listener."""
        names = [each.name for each in self.layers]
        if state["layers"] != names or state["every"] != self._every:
            raise ValueError(
                f"Watch: a state must be of a watch over the same {len(names)} layers by stretches of {self._every}, "
                f"got one over {len(state['layers'])} by stretches of {state['every']}."
            )
        parts = (state[name] for name in ("rows", "calls", "moved"))
        for rows, values, calls, moved in zip(self.rows, *parts, strict=True):
            rows.values[: len(values)].copy_(values)
            rows.calls[: len(calls)].copy_(calls)
            rows.moved.copy_(moved)
        self.momenta, self.others = [tuple(row) for row in state["momenta"]], dict(state["others"])
        if state["classes"] is not None:
            classes, values, unread = state["classes"]
            self.classes = ClassCounts(self._every, classes, self.rows[0].values.device)
            self.classes.values.copy_(values)
            self.classes.unread.copy_(unread)

    def _enter(self, module: nn.Module, arguments: Any) -> None:  # noqa: ANN401 (as the module takes them)
        if self._inside and self._inside[0] is module:  # a KeyboardInterrupt skipped the post-hook
            self._inside.clear()
        self._inside.append(module)
        if len(self._inside) == 1:
            outside_graphs(self._begin)

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ANN401 (likewise)
        if self._inside:
            self._inside.pop()
            if not self._inside:
                outside_graphs(self._end, output)

    def _begin(self) -> None:
        self._purpose = UNHEARD  # also where judging raises
        purpose = self._told()
        if purpose == UNHEARD or not self._can_read():
            return
        if purpose == TRAINING and len(self.momenta) == self._every:
            self._on_full()
        elif purpose == EVALUATION:
            self._on_evaluation()
        self._purpose = purpose
        for rows in self.rows:
            rows.read(len(self.momenta) if purpose == TRAINING else None, after=False)

    def _can_read(self) -> bool:
        """Follow the layers to another dtype or device; return False if there is nothing to read."""
        if all(rows.fits() for rows in self.rows):
            return True
        lost = next((why for why in (rows.layout.lost() for rows in self.rows) if why), None)
        if lost is not None:
            self._on_lost(lost)
            return False
        self._on_moved()
        for rows in self.rows:
            rows.layout.follow()
        self.rows = [Rows(rows.layout, self._every) for rows in self.rows]
        return True

    def _end(self, output: Any) -> None:  # noqa: ANN401 (whatever the model gives)
        if self._purpose == UNHEARD:
            return
        for rows in self.rows:
            rows.read(len(self.momenta) if self._purpose == TRAINING else None, after=True)
        if self._purpose == TRAINING:
            if output is not None:
                self._listen_to_loss(output)
            if self._guarded:
                self._restore()
            self.momenta.append(tuple(_momentum_of(each) for each in self._modules))
            return
        self.others[self._purpose] = self.others.get(self._purpose, 0) + 1
        if all(each.momentum is not None for each in self._modules):  # else the statistics are being measured again
            for rows in self.rows:
                rows.note_moved()
                if self._guarded and self._purpose == RECOMPUTATION:
                    rows.layout.write(rows.spare[0])

    def _told(self) -> str:
        if is_transformed() or is_recorded() or torch._C._get_dispatch_mode(_FAKE) is not None:
            return UNHEARD
        if any(map(is_on_copies, self._modules)):
            return UNHEARD
        if is_recomputing():
            return RECOMPUTATION
        if not any(each.training for each in self._modules):
            return EVALUATION
        return TRAINING if torch.is_grad_enabled() or _is_checkpointing() else NO_GRADIENT

    def _listen_to_loss(self, output: Any) -> None:  # noqa: ANN401 (whatever the model gives)
        logits = logits_of(output)
        if logits is None:
            return
        if self.classes is None or not self.classes.fits(logits):
            self.classes = ClassCounts(self._every, logits.shape[1], logits.device)
        self.classes.listen(len(self.momenta), logits)

    def _restore(self) -> None:
        """Restore layers whose running statistics are not finite, without a device synchronization."""
        for rows in self.rows:
            before, after = rows.values[len(self.momenta)]
            if after.is_cpu and bool(after.sum().isfinite()):
                continue
            layout = rows.layout
            bad = layout.by_layer((~after.isfinite()).any(0).to(after.dtype)) > 0
            kept = layout.by_channel(bad, after) > 0
            layout.write(torch.where(kept, before, after))


def _momentum_of(module: Norm) -> float | None:
    return None if module.momentum is None else float(module.momentum)


def _is_checkpointing() -> bool:
    """Whether reentrant checkpointing, whose first forward has no gradient, called this."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename.endswith(_CHECKPOINT):
            return True
    return False
