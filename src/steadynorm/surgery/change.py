"""What an operation changed in a model, what it refused, and how to undo it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from steadynorm.surgery.hidden import RunWatch, held_norms
from steadynorm.surgery.kinds import label

__all__ = ["Change", "Changed", "NothingDoneError", "Refused", "Transaction"]

_LISTED = 3
_REGISTER = "Register it, for instance in an nn.ModuleList."


class NothingDoneError(ValueError):
    """An operation could change nothing of what it was asked to.

    Args:
        message: the reason.
        refused: everything that was left unchanged.
    """

    def __init__(self, message: str, refused: tuple[Refused, ...]) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True, kw_only=True)
class Changed:
    """One thing that an operation changed.

    Args:
        name: qualified name of the module, the first if it has several; empty for the root.
        before: description of what it was.
        after: description of what it is now.
        notes: consequences worth knowing, such as an option that the new layer does not have or an unusually large
            gain.
    """

    name: str
    before: str
    after: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text({})

    def text(self, times: Mapping[str, int]) -> str:
        """Describe the change in one line, and each note in another.

        Args:
            times: note -> number of layers with it, 0 if it has been listed before.
        """
        told = {note: times.get(note, 1) for note in self.notes}
        notes = "".join(
            f"\n    note: {note}{f' ({count} layers)' if count > 1 else ''}" for note, count in told.items() if count
        )
        return f"{self.name or '(the model)'}: {self.before} -> {self.after}{notes}"


@dataclass(frozen=True, kw_only=True)
class Refused:
    """One thing that an operation left unchanged, with the reason.

    Args:
        name: qualified name of the module.
        what: description of the module.
        why: the reason, and what to do about it.
    """

    name: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.name or '(the model)'}: {self.what} left as it was: {self.why}"


@dataclass(frozen=True, kw_only=True)
class _Step:
    """An edit to undo: ``fits`` says whether the place still holds what the operation put there."""

    undo: Callable[[], None]
    fits: Callable[[], bool]


@dataclass(kw_only=True, repr=False, eq=False)
class Change:
    """Result of an operation on a model: what changed, what was refused, and :meth:`undo`.

    Printed, it is one line per layer.

    Args:
        verb: name of the operation.
        model: the model after the operation; a new object only if the root module itself was replaced.
        changed: what changed.
        refused: what was left unchanged, and why.
        measured: numbers that the operation measured, by name.
        notes: remarks about the whole model, such as how names were matched or which layers are not registered
            submodules.
    """

    verb: str
    model: nn.Module
    changed: tuple[Changed, ...]
    refused: tuple[Refused, ...]
    measured: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _before: nn.Module
    _steps: list[_Step]
    _undone: bool = False

    def undo(self) -> nn.Module:
        """Undo the operation, bit for bit: modules, flags and values that it wrote.

        Later changes to other things are kept. A layer that was converted, trained and converted back keeps what its
        parameters and running statistics have learned since, and the current mode, device and dtype of the model.

        Returns:
            the model before the operation, the same object.

        Raises:
            RuntimeError: already undone, or something that the operation placed has been replaced since.
        """
        if self._undone:
            raise RuntimeError(f"{self.verb}: this change has been undone already.")
        if not all(step.fits() for step in self._steps):
            raise RuntimeError(
                f"{self.verb}: the model has since been changed in a place of this change. Undo the later change first."
            )
        for step in reversed(self._steps):
            step.undo()
        self._undone = True
        self.model = self._before
        return self._before

    def __repr__(self) -> str:
        """Show the change, one line per layer."""
        numbers = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in self.measured.items())
        head = f"{self.verb}: {len(self.changed)} changed, {len(self.refused)} refused{numbers}"
        lines = [head + (" (undone)" if self._undone else ""), *(f"note: {note}" for note in self.notes)]
        times = dict(Counter(note for each in self.changed for note in each.notes))
        for each in self.changed:
            lines.append(each.text(times))
            times |= dict.fromkeys(each.notes, 0)
        return "\n  ".join([*lines, *map(str, self.refused)])


class Transaction:
    """Edits of an operation that can be undone, during the operation and after it.

    As a context manager it undoes every edit if the operation raises, so that a model is never left half changed.

    Args:
        verb: name of the operation.
        model: the root.
    """

    def __init__(self, verb: str, model: nn.Module) -> None:
        self.verb, self.model = verb, model
        self.changed: list[Changed] = []
        self.refused: list[Refused] = []
        self.notes: list[str] = []
        self._candidates: set[str] = set()
        self._moot: set[str] = set()
        self._passed_over: list[str] = []
        self._before = model
        self._steps: list[_Step] = []
        self._places: list[tuple[dict[str, Any], str, nn.Module, nn.Module]] = []
        self.where: Callable[[str, nn.Module], bool] | None = None
        self._watch = RunWatch(model)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watch.stop()
        if kind is not None:
            for step in reversed(self._steps):
                step.undo()

    def note_changed(self, name: str, before: str, after: str, *notes: str) -> None:
        """Record a change."""
        self.changed.append(Changed(name=name, before=before, after=after, notes=notes))

    def consider(self, names: Iterable[str]) -> None:
        """Record what the operation was asked to change; if all of it is refused, :meth:`finish` raises."""
        self._candidates.update(names)

    def pass_over(self, names: Iterable[str]) -> None:
        """Record the batch norms of the model if ``where`` selects none of them; :meth:`finish` then raises."""
        self._passed_over.extend(names)

    def refuse(self, name: str, what: str, why: str, *, moot: bool = False) -> None:
        """Record that a module is left as it is, and why; ``moot`` if there was nothing to do."""
        self.refused.append(Refused(name=name, what=what, why=why))
        if moot:
            self._moot.add(name)

    def set_attribute(self, owner: object, name: str, value: Any) -> None:  # noqa: ANN401 (any attribute)
        """Set a plain attribute."""
        missing = object()
        old = getattr(owner, name, missing)
        self.edit(
            lambda: setattr(owner, name, value),
            lambda: delattr(owner, name) if old is missing else setattr(owner, name, old),
            lambda: getattr(owner, name, missing) is value,
        )

    def set_entry(self, table: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401 (any entry)
        """Set an existing entry of a module's ``_modules``, ``_parameters`` or ``_buffers``, and keep the order."""
        old = table[key]
        self.edit(
            lambda: table.__setitem__(key, value),
            lambda: table.__setitem__(key, old),
            lambda: table.get(key) is value,
        )

    def write_(self, tensor: Tensor, value: Tensor) -> None:
        """Write values into a tensor, in place; if a buffer has since been moved, undo also writes into the new one."""
        old = tensor.detach().clone()
        tables = [module._buffers for module in self.model.modules()]
        places = [(table, key) for table in tables for key, each in table.items() if each is tensor]

        def undo() -> None:
            _copy_(tensor, old)
            for now in (table.get(key) for table, key in places):
                if now is not None and now is not tensor and now.shape == old.shape:
                    _copy_(now, old)

        self.edit(lambda: _copy_(tensor, value), undo, lambda: True)

    def replace(self, old: nn.Module, new: nn.Module) -> None:
        """Replace a module everywhere in the model, the root included.

        If the model's mode changes in the meantime, undo puts the old module into that mode.
        """
        mode = new.training
        self.edit(lambda: None, lambda: _follow_mode(old, new, mode), lambda: True)
        if self.model is old:
            self.model = new
            return
        for parent in list(self.model.modules()):
            for key, child in parent._modules.items():
                if child is old:
                    self.set_entry(parent._modules, key, new)
                    self._places.append((parent._modules, key, old, new))

    @contextmanager
    def as_before(self) -> Iterator[nn.Module]:
        """Yield the model with its original modules, and restore the current ones on exit."""
        for table, key, old, _ in reversed(self._places):
            table[key] = old
        try:
            yield self._before
        finally:
            for table, key, _, new in self._places:
                table[key] = new

    def finish(self, **measured: float) -> Change:
        """Build the :class:`Change`, and refuse batch norms that are not registered submodules.

        Raises:
            NothingDoneError: everything was refused, or ``where`` selects nothing.
        """
        self._refuse_hidden()
        self._check_done()
        return Change(
            verb=self.verb,
            model=self.model,
            changed=tuple(self.changed),
            refused=tuple(self.refused),
            measured=measured,
            notes=tuple(self.notes),
            _before=self._before,
            _steps=self._steps,
        )

    def _check_done(self) -> None:
        """Raise if nothing was changed although something should be."""
        if self.changed:
            return
        refused = {each.name for each in self.refused} - self._moot
        if self._candidates and self._candidates <= refused:
            first = "; ".join(map(str, self.refused[:_LISTED])) + ("; ..." if len(self.refused) > _LISTED else "")
            raise NothingDoneError(
                f"{self.verb}: nothing can be changed, {len(self.refused)} refused: {first}",
                tuple(self.refused),
            )
        if self._passed_over and not self.refused:
            names = self._passed_over
            first = ", ".join(map(repr, names[:_LISTED])) + (", ..." if len(names) > _LISTED else "")
            raise NothingDoneError(
                f"{self.verb}: where must select a batch norm, got none of the {len(names)} in the model: {first}.",
                (),
            )

    @contextmanager
    def replaced_stand_still(self) -> Iterator[None]:
        """Context that runs the current model and checks that no replaced module runs.

        Raises:
            RuntimeError: a replaced module still runs, because something else holds it.
        """
        self._watch.forget_own()
        yield
        running = [old for _, _, old, _ in self._places if self._watch.has_run(old)]
        if running:
            paths = {id(module): path for path, module in held_norms(self.model).items()}
            names = ", ".join(f"{label(old)} {paths.get(id(old), '')}".strip() for old in running)
            raise RuntimeError(
                f"{self.verb}: replaced modules must not run any more, got {names}, which the model calls from outside "
                "its submodules. Call the registered module instead, or leave it out with where=...."
            )

    def _refuse_hidden(self) -> None:
        held = held_norms(self.model)
        paths = {id(module): path for path, module in held.items()}
        ran = {id(module): module for module in self._watch.ran(self.model)}
        replaced = {id(module) for _, _, old, _ in self._places for module in old.modules()}
        unheld = [("(beside the model)", module) for key, module in ran.items() if key not in paths]
        for path, module in [*held.items(), *unheld]:
            if self.where is not None and not self.where(path, module):
                continue
            if id(module) not in ran and id(module) in replaced:
                why = "it is still held here, although another module replaces it. If it runs, put the new one here."
            else:
                held_only = "is held here, but it is no submodule, and is kept if it runs."
                why = f"it {'runs, but it is no submodule.' if id(module) in ran else held_only} {_REGISTER}"
                self.consider([path])
            self.refuse(path, label(module), why)

    def edit(self, act: Callable[[], None], undo: Callable[[], None], fits: Callable[[], bool]) -> None:
        """Make an edit, and store how to undo it; ``fits`` says whether the place is unchanged since."""
        act()
        self._steps.append(_Step(undo=undo, fits=fits))


def _follow_mode(old: nn.Module, new: nn.Module, before: bool) -> None:
    if new.training != before:
        old.train(new.training)


@torch.no_grad()
def _copy_(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value)
