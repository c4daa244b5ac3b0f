import subprocess
import sys

import numpy as np
import pytest
import torch

from steadynorm.lab.data import DATASETS, load_dataset
from steadynorm.lab.data.layouts import LAYOUTS
from steadynorm.reporting.failure import UserError


def test_shapes_are_found_by_name():
    assert load_dataset("shapes").name == "shapes"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        UserError,
        match=r"one of: shapes, digits, cifar10, cifar100, mnist, fashion_mnist; .* Got svhn, which is no file",
    ) as no:
        load_dataset("svhn")
    for layout in LAYOUTS:
        assert layout.told in str(no.value)


def test_what_a_directory_of_no_layout_holds_is_said(tmp_path):
    for name in "abcdefg":
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"Got the directory .*, which holds a, b, c, d, e and 2 more\.$"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"columns": ("x", "y")}, "--columns: is for your own data, not for digits"),
        ({"validation_share": 0.5}, "--validation-share: is for your own data, not for digits"),
        ({"image_size": (0,)}, "--image-size: must be height and width, or one number for both, got 0"),
        ({"image_size": (1, 2, 3)}, "--image-size: must be height and width, or one number for both, got 1 2 3"),
    ],
)
def test_what_would_do_nothing_is_refused(how, why):
    with pytest.raises(UserError, match=why):
        load_dataset("digits", **how)


def test_images_of_a_named_data_set_are_resized_and_keep_its_scale():
    whole, small = load_dataset("digits"), load_dataset("digits", image_size=(14,))
    assert small.image_size == (14, 14)
    assert (small.mean, small.std, small.classes) == (whole.mean, whole.std, whole.classes)
    assert torch.equal(small.train.labels, whole.train.labels)
    halves = whole.train.pixels.float().reshape(1400, 1, 14, 2, 14, 2).mean((3, 5))
    assert (halves - small.train.pixels.float()).abs().mean() < 8  # the triangle that antialiases is wider


def test_a_share_must_leave_images_in_both_parts(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2, 2), np.uint8), y=np.arange(4) % 2)
    for share in (0.0, 0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match=f"--validation-share: must leave images in both parts, got {share} of 4"):
            load_dataset(str(tmp_path / "a.npz"), validation_share=share)


def test_a_share_is_refused_where_there_is_a_part_for_validation(tmp_path):
    part = {"x_train": np.zeros((4, 2, 2), np.uint8), "y_train": np.arange(4) % 2}
    np.savez(tmp_path / "a.npz", **part, x_test=part["x_train"], y_test=part["y_train"])
    with pytest.raises(UserError, match=r"--validation-share: is for data without .* these have one"):
        load_dataset(str(tmp_path / "a.npz"), validation_share=0.5)


def test_a_channel_that_is_the_same_everywhere_is_not_scaled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full((40, 2, 2), 51, np.uint8), y=np.arange(40) % 2)
    said = []
    dataset = load_dataset(str(tmp_path / "a.npz"), progress=said.append)
    assert (dataset.mean, dataset.std) == (pytest.approx((0.2,)), (1.0,))
    assert said[-1] == "a channel of the training images is constant; it is not scaled"


def test_the_known_names_are_public():
    assert DATASETS == ("shapes", "digits", "cifar10", "cifar100", "mnist", "fashion_mnist")


def test_shapes_need_none_of_the_packages_that_read_files():
    program = (
        "import sys; from steadynorm.lab.data import load_dataset; load_dataset('shapes'); "
        "sys.exit(bool({'pyarrow', 'PIL', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
