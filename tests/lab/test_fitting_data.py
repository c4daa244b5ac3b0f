from dataclasses import replace

import pytest
import torch

from steadynorm.lab import fitting_data
from steadynorm.lab.data import Images, first
from steadynorm.lab.experiments.recalibration import RecalibrationConfig
from steadynorm.lab.fitting_data import check_data
from steadynorm.reporting.failure import UserError
from tests.support.experiments import TINY, Recorder, tiny_dataset
from tests.support.records import record

DATA = tiny_dataset()  # 96 training and 30 validation images
OF_ONE = Images(pixels=DATA.train.pixels, labels=torch.zeros(96, dtype=torch.int64))


def test_a_batch_of_all_training_images_is_taken():
    check_data(replace(TINY, batch_size=96), DATA)
    check_data(replace(TINY, batch_size=24, accumulate=4), DATA)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch_size": 97}, r"a step of 97 images needs as many, got 96 training images\. Give at most 96\.$"),
        ({"batch_size": 32, "accumulate": 4}, r"a step of 4 x 32 images .*, got 96 .*Give at most 24\.$"),
    ],
)
def test_a_step_larger_than_the_training_images_is_refused(changed, said):
    with pytest.raises(UserError, match=f"^--batch-size: {said}"):
        check_data(replace(TINY, **changed), DATA)


def test_of_several_batch_sizes_each_is_looked_at():
    with pytest.raises(UserError, match="a step of 128 images"):
        fitting_data.check_batches((32, 128), 96)


def test_where_nothing_is_trained_a_batch_may_be_larger(tmp_path):
    check_data(RecalibrationConfig(checkpoint=tmp_path / "a.safetensors", batch_size=128), DATA)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_images_of_one_class_are_refused(part):
    with pytest.raises(UserError, match=r"^--data: \w+ images must be of two classes at least, got 96 of one class"):
        check_data(TINY, replace(DATA, **{part: OF_ONE}))


def test_validation_images_that_workers_cannot_share_are_refused(monkeypatch):
    monkeypatch.setattr(fitting_data, "number_of_workers", lambda: 4)
    with pytest.raises(UserError, match=r"^--data: the 4 workers share the validation images, got 3\."):
        check_data(TINY, replace(DATA, validation=first(DATA.validation, 3)))


def test_images_that_can_tell_no_network_from_guessing_are_said_to_be_so():
    display, made = Recorder(), record(())
    fitting_data.tell_limits(made, display)
    assert display.messages == []
    made.resolved.update(chance=0.9, validation_images=40)  # 0.9^40 is 1.5 %
    fitting_data.tell_limits(made, display)
    (said,) = display.messages
    assert said.startswith("40 validation images, 90.0") and said.endswith("from guessing: hold out more")
