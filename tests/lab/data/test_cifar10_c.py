import numpy as np
import pytest
import torch

from steadynorm.lab.data import cifar10_c
from steadynorm.lab.data.cifar10_c import load_cifar10_c
from steadynorm.reporting.failure import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
LABELS = np.tile(np.array([3, 8, 8, 0], dtype=np.uint8), 5)


@pytest.fixture(autouse=True)
def four_images(monkeypatch):
    """A severity is taken to have 4 images."""
    monkeypatch.setattr(cifar10_c, "COUNT", 4)


@pytest.fixture
def directory(tmp_path):
    np.save(tmp_path / "fog.npy", PIXELS)
    np.save(tmp_path / "labels.npy", LABELS)
    return tmp_path


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_severities_lie_one_after_the_other(directory, severity):
    images = load_cifar10_c(directory, "fog", severity=severity)
    expected = PIXELS[4 * severity - 4 : 4 * severity].transpose(0, 3, 1, 2)
    assert np.array_equal(images.pixels.numpy(), expected)


def test_labels_are_those_of_the_labels_file(directory):
    assert load_cifar10_c(directory, "fog", severity=4).labels.tolist() == [3, 8, 8, 0]


def test_labels_are_those_of_the_severity(directory):
    np.save(directory / "labels.npy", np.arange(20, dtype=np.uint8) % 10)
    assert load_cifar10_c(directory, "fog", severity=2).labels.tolist() == [4, 5, 6, 7]


def test_pixels_are_stored_channels_last(directory):
    pixels = load_cifar10_c(directory, "fog", severity=1).pixels
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_images_are_held_in_memory_and_not_in_the_file(directory):
    images = load_cifar10_c(directory, "fog", severity=1)
    images.pixels.zero_()
    assert np.array_equal(np.load(directory / "fog.npy"), PIXELS)


def test_the_files_may_lie_in_their_own_subdirectory(tmp_path):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "fog.npy", PIXELS)
    np.save(folder / "labels.npy", LABELS)
    assert len(load_cifar10_c(tmp_path, "fog", severity=1)) == 4


@pytest.mark.parametrize("place", ["", "missing"])
def test_nothing_is_found_where_nothing_is(directory, place):
    assert load_cifar10_c(directory / place, "snow", severity=1) is None


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_labels_may_be_wider_than_bytes(directory, dtype):
    np.save(directory / "labels.npy", LABELS.astype(dtype))
    assert load_cifar10_c(directory, "fog", severity=1).labels.tolist() == [3, 8, 8, 0]


@pytest.mark.parametrize(
    "wrong", [PIXELS[:19], PIXELS.transpose(0, 3, 1, 2), PIXELS[:, :28], PIXELS.astype(np.float32)]
)
def test_pixels_of_another_kind_are_refused(directory, wrong):
    np.save(directory / "fog.npy", wrong)
    with pytest.raises(UserError, match=r"fog.npy: must be uint8 of shape \(20, 32, 32, 3\), got (uint8|float32) \("):
        load_cifar10_c(directory, "fog", severity=1)


@pytest.mark.parametrize("wrong", [LABELS[:4], LABELS.astype(np.float64), LABELS[:, None]])
def test_labels_of_another_kind_are_refused(directory, wrong):
    np.save(directory / "labels.npy", wrong)
    with pytest.raises(UserError, match=r"labels.npy: must be uint8 or int32 or int64 of shape \(20,\), got \w+ \("):
        load_cifar10_c(directory, "fog", severity=1)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_outside_the_classes_are_refused(directory, label):
    np.save(directory / "labels.npy", np.array([label] + [0] * 19))
    with pytest.raises(UserError, match=r"labels.npy: labels must be 0 to 9, got"):
        load_cifar10_c(directory, "fog", severity=5)


def test_missing_labels_are_named(directory):
    (directory / "labels.npy").unlink()
    with pytest.raises(UserError, match=r"labels.npy: must be there, got no such file"):
        load_cifar10_c(directory, "fog", severity=1)


@pytest.mark.parametrize("length", [0, 5, 100, 128, 10_000])
def test_truncated_files_are_refused(directory, length):
    path = directory / "fog.npy"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"fog.npy: must be a complete .npy file of numbers, got .* Download it again"):
        load_cifar10_c(directory, "fog", severity=1)


@pytest.mark.parametrize(
    "damage",
    [(b"{", b"("), (b"{", b")"), (b"(20,", b"(-2,"), (b"|u1", b",u1"), (b"|u1", b"|z1"), (b"'descr'", b"7      ")],
)
def test_damaged_headers_are_refused(directory, damage):
    path = directory / "fog.npy"
    path.write_bytes(path.read_bytes().replace(*damage, 1))
    with pytest.raises(UserError, match=r"fog.npy: must be a complete .npy file of numbers, got"):
        load_cifar10_c(directory, "fog", severity=1)


def test_pickled_objects_are_refused_and_not_run(directory):
    class Runs:
        def __reduce__(self):
            return (directory / "made").mkdir, ()

    np.save(directory / "fog.npy", np.array([Runs()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"fog.npy: must be a complete .npy file of numbers"):
        load_cifar10_c(directory, "fog", severity=1)
    assert not (directory / "made").exists()


@pytest.mark.parametrize("name", ["rain", "../fog", "labels"])
def test_an_unknown_corruption_is_refused(directory, name):
    with pytest.raises(ValueError, match=r"load_cifar10_c: name must be one of gaussian_noise, .*, got '"):
        load_cifar10_c(directory, name, severity=1)


@pytest.mark.parametrize("severity", [0, 6])
def test_a_severity_outside_one_to_five_is_refused(directory, severity):
    with pytest.raises(ValueError, match=rf"load_cifar10_c: severity must be 1 to 5, got {severity}"):
        load_cifar10_c(directory, "fog", severity=severity)
