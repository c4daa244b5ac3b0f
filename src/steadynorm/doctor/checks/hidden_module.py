"""A batch norm that the model holds without registering it.

Looks at: lists, dictionaries, hooks, closures, default arguments and attributes of plain objects that modules hold,
three levels deep, and globals that a forward reads.

Harm: a module that is not a registered submodule is missing from ``state_dict()``, gets no ``.train()``, ``.eval()`` or
``.to()``, and no optimizer has its parameters. If it runs, it keeps its initial weights, evaluates with batch
statistics, and its statistics are lost when the model is saved.

Remedy: register it, for instance in an ``nn.ModuleList``. This needs a change of the model's code.

Threshold: none; a note if it evaluates and learns nothing, such as a teacher that is kept out of the state dict on
purpose.

Source: torch.nn.ModuleList's documentation.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(advice="Register it in the model, for instance in an nn.ModuleList.")
_MEANT = "It is held here but is no submodule; it evaluates and does not learn, which may be intended."
_PROBLEM = "It is held here but is no submodule: model.eval(), state_dict() and the optimizer do not reach it."


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if norm.hidden:
            meant = not norm.training and not norm.learns
            yield at(norm, Severity.NOTE if meant else Severity.WARNING, _MEANT if meant else _PROBLEM, _REMEDY)
