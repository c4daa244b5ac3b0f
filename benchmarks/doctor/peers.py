"""What torch-audit 0.3, the nearest rival on PyPI, notices in the same networks.

It audits a training loop: each network is audited as a module, and over two steps of training on the case's batches.
It is counted generously: a fault counts as noticed where it says anything at all, of a severity of WARN or above, that
it does not say of the same network without the fault. fvcore, timm and Lightning have nothing to run here: they measure
statistics again, or convert layers, but do not diagnose.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import functional

from benchmarks.doctor.subject import Case

__all__ = ["audited", "is_installed"]


def is_installed() -> bool:
    """Whether torch-audit can be imported."""
    try:
        import torch_audit  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return False
    return True


def audited(case: Case) -> frozenset[str]:
    """Give what it says of a network: rules and the modules they name; ``raises`` where it or the training raises."""
    from torch_audit import audit, audit_dynamic

    model = copy.deepcopy(case.model)
    said: list[Any] = list(audit(model).findings)
    if case.batches is None:
        return _named(said)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 1e-4)
    batches = [batch for batch, _ in zip(case.batches, range(2), strict=False)]
    if not case.model.training:
        model.train()
    try:
        with audit_dynamic(model, optimizer=optimizer, every_n_steps=1, fail_level="FATAL") as auditor:
            for x, labels in batches:
                optimizer.zero_grad(set_to_none=True)
                auditor.backward(functional.cross_entropy(auditor.forward(x).float(), labels))
                auditor.optimizer_step()
        said += auditor.finish(report=False).findings
    except (RuntimeError, ValueError):
        return _named(said) | {"raises"}
    return _named(said)


def _named(findings: list[Any]) -> frozenset[str]:
    worse = [each for each in findings if each.severity.value != "INFO"]
    return frozenset(f"{each.rule_id} {each.module_path or ''}" for each in worse)
