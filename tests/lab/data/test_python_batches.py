import os
import pickle

import numpy as np
import pytest
import torch

from steadynorm.lab.data.python_batches import read_batches
from steadynorm.reporting.failure import UserError

DATA = np.random.RandomState(0).randint(0, 256, (4, 3072)).astype(np.uint8)
LABELS = [3, 0, 9, 1]


def _write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_planes_become_channels(tmp_path):
    found = read_batches([_write(tmp_path / "b", {"data": DATA, "labels": LABELS})])
    assert np.array_equal(found.pixels.numpy(), DATA.reshape(4, 3, 32, 32))
    assert found.labels.tolist() == LABELS


def test_pixels_are_stored_channels_last(tmp_path):
    pixels = read_batches([_write(tmp_path / "b", {"data": DATA, "labels": LABELS})]).pixels
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_keys_may_be_bytes(tmp_path):
    assert read_batches([_write(tmp_path / "b", {b"data": DATA, b"labels": LABELS})]).labels.tolist() == LABELS


def test_files_are_joined_in_the_order_given(tmp_path):
    paths = [
        _write(tmp_path / name, {"data": DATA[part], "labels": LABELS[part]})
        for name, part in (("b", slice(0, 3)), ("a", slice(3, 4)))
    ]
    assert read_batches(paths).labels.tolist() == LABELS


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data_batch_3: must be readable, got No such file"):
        read_batches([tmp_path / "data_batch_3"])


def test_a_file_that_asks_for_code_is_refused_and_not_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = _write(tmp_path / "b", {"data": DATA, "labels": LABELS, "more": Runs()})
    with pytest.raises(UserError, match=r"b: must be a batch of CIFAR-10, but the pickle asks for \w+\.mkdir"):
        read_batches([path])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content", [[1, 2], {"data": DATA}, {"labels": LABELS}, {"data": DATA[:, :5], "labels": LABELS}]
)
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"b: must hold data of shape \(rows, 3072\) and a list of labels"):
        read_batches([_write(tmp_path / "b", content)])


@pytest.mark.parametrize("labels", [[1, 2, 3], [1, 2, 3, 10], [1, 2, 3, -1], [1, 2, 3, "4"], [1, 2, 3, True]])
def test_wrong_labels_are_refused(tmp_path, labels):
    with pytest.raises(UserError, match="b: must hold a label from 0 to 9 for each of its 4 images"):
        read_batches([_write(tmp_path / "b", {"data": DATA, "labels": labels})])
