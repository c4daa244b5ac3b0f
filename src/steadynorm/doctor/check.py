"""The type of a check: a name, the evidence it needs, and a pure function from evidence to findings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Self

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding

__all__ = ["NEEDED", "SECTIONS", "Check"]

SECTIONS = ("Looks at", "Harm", "Remedy", "Threshold", "Source")
"""Paragraphs of the docstring of a check's file."""
NEEDED = {"score": "loss or metric", "step": "accumulation or world_size"}
"""Part of the evidence -> arguments of :func:`steadynorm.diagnose` that provide it, where the names differ."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check.

    Args:
        name: its name in findings, ``--explain`` and ``skip``.
        needs: parts of the evidence that it reads beyond the model's own state: ``optimizer``, ``batches``, ``score``,
            ``reference``, ``checkpoint``, ``ranks``, ``step``. Where one is missing the check does not run, and the
            diagnosis says so.
        run: evidence -> findings; it reads nothing else, and changes nothing.
        explains: names of checks that measure the effect of such a fault on later layers. If this check warns, their
            findings become notes: the cause is what to fix.
        only_notes: whether all of its findings are notes.
        text: docstring of its file: a title, and the paragraphs of :data:`SECTIONS`.
    """

    name: str
    needs: tuple[str, ...] = ()
    explains: tuple[str, ...] = ()
    only_notes: bool = False
    run: Callable[[Evidence], Iterable[Finding]]
    text: str

    @classmethod
    def of(cls, module: ModuleType) -> Self:
        """Build the check from a module in ``checks/``.

        The module has a docstring, a function ``run``, and optionally the constants ``NEEDS``, ``EXPLAINS`` and
        ``ONLY_NOTES``.
        """
        return cls(
            name=module.__name__.rsplit(".", 1)[-1].replace("_", "-"),
            needs=getattr(module, "NEEDS", ()),
            explains=getattr(module, "EXPLAINS", ()),
            only_notes=getattr(module, "ONLY_NOTES", False),
            run=module.run,
            text=module.__doc__ or "",
        )

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        """Run it."""
        return (replace(finding, check=self.name) for finding in self.run(evidence))

    @property
    def title(self) -> str:
        """The fault that it finds, in one line."""
        return inspect.cleandoc(self.text).splitlines()[0]

    def sections(self) -> dict[str, str]:
        """Return the text of each of :data:`SECTIONS`."""
        parts = re.split(rf"^({'|'.join(SECTIONS)}): ", inspect.cleandoc(self.text), flags=re.MULTILINE)
        return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}

    def explain(self) -> str:
        """Return its page: title, what it looks at, harm, remedy, threshold and source."""
        needs = f"Needs: {', '.join(NEEDED.get(each, each) for each in self.needs)}.\n\n" if self.needs else ""
        body = "\n\n".join(f"**{name}.** {_begun(text)}" for name, text in self.sections().items())
        worst = "Always a note.\n\n" if self.only_notes else ""
        return f"# {self.name}\n\n{self.title}\n\n{needs}{worst}{body}\n"


def _begun(text: str) -> str:
    """Capitalize a sentence, unless its first word is a name in code."""
    first = text.partition(" ")[0]
    return text if re.search(r"[_.]\w", first) else f"{text[:1].upper()}{text[1:]}"
