"""Cells read back as the course of a training."""

import pytest

from steadynorm.lab.report.landscape.courses import course_of, courses
from tests.support.landscape import cell, made


def test_a_cell_is_read_back() -> None:
    course = course_of(cell("none", 7, accuracy=(0.2, 0.4), diverged_at=43))
    assert (course.seed, course.diverged_at) == (7, 43)
    assert [look.step for look in course.looks] == [0, 10, 20, 30, 40]
    assert [(epoch.step, epoch.val_accuracy) for epoch in course.epochs] == [(20, 0.2), (40, 0.4)]
    look = course.looks[0]
    assert [reach.length for reach in look.rate] == [0.5, 1.0, 2.0, 4.0]
    assert [reach.length for reach in look.weights] == [0.0025, 0.005, 0.01, 0.02]
    assert look.layers == {"conv1": 0.05, "conv2": 0.05, "classifier": 0.05}


def test_accuracy_is_that_of_networks_that_trained_to_the_end() -> None:
    arm = courses(made([cell("none", 0), cell("none", 1, accuracy=(0.1,), diverged_at=25)]))[2]
    assert (arm.val_accuracy.mean, arm.val_accuracy.n) == (0.5, 1)
    assert arm.train_loss.mean == pytest.approx(2.3 * 0.5)
    assert [course.diverged_at for course in arm.diverged] == [25]
