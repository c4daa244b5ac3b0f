"""``steadynorm doctor``: the diagnosis of a model from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import chain

import torch
from torch import nn

from steadynorm.checkup.config import DoctorConfig, check_config
from steadynorm.checkup.given import Given, load_given
from steadynorm.checkup.treatment import reloaded, treat
from steadynorm.deploy.source import load_source
from steadynorm.doctor import CHECKS, Diagnosis, judge
from steadynorm.doctor.evidence import Evidence
from steadynorm.lab.machine import choose_device
from steadynorm.lab.weights import STATISTICS
from steadynorm.reporting.diagnosis import Examination, Treated
from steadynorm.reporting.environment import describe_machine, describe_versions
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.flags import as_config, command_of
from steadynorm.reporting.progress import Display

__all__ = ["explain", "run_doctor"]


def run_doctor(config: DoctorConfig, display: Display) -> Examination:
    """Diagnose a model.

    Raises:
        UserError: the model or its data cannot be read or run.
    """
    source = check_config(config)
    key, code = config.weights_key, config.code
    found = load_source(source, weights=config.weights, key=key, may_lack=STATISTICS, code=code)
    if found.weights:
        display.message(found.weights)
    model = found.model.to(choose_device(config.device))
    given = load_given(config, model, display)
    evidence = _looked_at(given, model, display, "looking at the model", number=1, of=1 if config.treat is None else 3)
    diagnosis = judge(evidence, skip=config.skip)
    treated = None if config.treat is None else _treated(config, source, model, diagnosis, given, display)
    return Examination(
        diagnosis=diagnosis,
        model=found.name,
        told=tuple(filter(None, (found.weights, *given.told))),
        has_data=given.sample is not None,
        scores=_scores(evidence),
        command=command_of("doctor", config),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=as_config(config),
        versions=describe_versions(),
        machine=describe_machine(next(chain(model.parameters(), model.buffers()), torch.empty(0)).device),
        treated=treated,
    )


def _looked_at(given: Given, model: nn.Module, display: Display, name: str, *, number: int, of: int) -> Evidence:
    """Examine a model, and show the progress."""
    if given.sample is None:
        return given.observed(model)
    display.begin(name, number=number, of=of)
    evidence = given.observed(model, lambda share: display.advance(name, share))
    display.end(name)
    return evidence


def _treated(
    config: DoctorConfig, source: str, model: nn.Module, diagnosis: Diagnosis, given: Given, display: Display
) -> Treated:
    """Treat the model, and examine a new one built with the written weights."""
    assert config.treat is not None
    display.begin("treating it", number=2, of=3)
    found = treat(model, diagnosis, given.sample, source=source, out=config.treat, checkpoint=given.checkpoint)
    display.end("treating it")
    if not found.file:
        return found
    rebuilt = reloaded(source, config.treat, code=config.code).to(choose_device(config.device))
    remaining = _looked_at(given, rebuilt, display, "looking at a rebuilt model", number=3, of=3)
    return replace(found, remaining=judge(remaining, skip=config.skip))


def explain(name: str) -> str:
    """Return the page of a check.

    Raises:
        UserError: no check has this name; the message lists similar names.
    """
    if name in CHECKS:
        return CHECKS[name].explain()
    near = get_close_matches(name.lower().replace("_", "-"), CHECKS, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"--explain: no check is called {name!r}.{meant} --list shows all.")


def _scores(evidence: Evidence) -> Mapping[str, float]:
    """Return the accuracy with each kind of statistics; empty if it was not measured."""
    runs = evidence.batches
    if runs is None or evidence.score is None:
        return {}
    each = {"stored": runs.evaluation, "batch": runs.by_batch}
    return {name: -sum(scores) / len(scores) for name, scores in each.items() if scores}
