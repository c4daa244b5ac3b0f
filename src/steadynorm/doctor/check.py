"""What a check is: a name, what it needs, and a pure function from evidence to findings."""

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
"""What the docstring of a check's file says, each in a paragraph of its own."""
NEEDED = {"score": "loss or metric", "step": "accumulation or world_size"}
"""Parts of the evidence, by the arguments of :func:`steadynorm.diagnose` that give them, where these differ."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check.

    Args:
        name: by which findings, ``--explain`` and ``skip`` know it.
        needs: parts of the evidence that it reads beyond the model's own state: ``optimizer``, ``batches``, ``score``,
            ``reference``, ``checkpoint``, ``ranks``, ``step``. Where one is missing the check does not run, and the
            diagnosis says so.
        run: evidence -> findings; it reads nothing else, and changes nothing.
        explains: names of checks that measure what such a fault does to the layers behind it. Beside a warning of this
            check theirs are notes: the cause is what to fix.
        only_notes: whether no finding of it is worse than a note.
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
        """Give the check of a file in ``checks/``.

        It has a docstring, a function ``run``, and where they apply the constants ``NEEDS``, ``EXPLAINS`` and
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
        """What is wrong where it fires, in one line."""
        return inspect.cleandoc(self.text).splitlines()[0]

    def sections(self) -> dict[str, str]:
        """Give what its file says of each of :data:`SECTIONS`."""
        parts = re.split(rf"^({'|'.join(SECTIONS)}): ", inspect.cleandoc(self.text), flags=re.MULTILINE)
        return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}

    def explain(self) -> str:
        """Give its page: title, what it looks at, why that harms, the remedy, the threshold, the source."""
        needs = f"Needs: {', '.join(NEEDED.get(each, each) for each in self.needs)}.\n\n" if self.needs else ""
        body = "\n\n".join(f"**{name}.** {_begun(text)}" for name, text in self.sections().items())
        worst = "Always a note.\n\n" if self.only_notes else ""
        return f"# {self.name}\n\n{self.title}\n\n{needs}{worst}{body}\n"


def _begun(text: str) -> str:
    """Begin a sentence with a capital, unless a name in code is its first word."""
    first = text.partition(" ")[0]
    return text if re.search(r"[_.]\w", first) else f"{text[:1].upper()}{text[1:]}"
