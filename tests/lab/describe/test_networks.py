"""How far a record's networks are."""

import pytest

from steadynorm.lab.describe.networks import all_measured
from steadynorm.reporting.records import Status
from tests.support.records import record, run


@pytest.mark.parametrize(
    ("statuses", "measured"),
    [(["finished"], False), (["diverged", "diverged"], True), (["finished", "diverged"], False), ([], False)],
)
def test_nothing_is_planned_after_networks_that_all_diverged(statuses: list[Status], measured: bool) -> None:
    networks = [run("a", val_accuracy=[0.2], seed=seed, status=status) for seed, status in enumerate(statuses)]
    assert all_measured(record(networks)) == measured
