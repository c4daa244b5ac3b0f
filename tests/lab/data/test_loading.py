import subprocess
import sys

import pytest

from steadynorm.lab.data import DATASETS, load_dataset
from steadynorm.reporting.failure import UserError


def test_shapes_are_found_by_name():
    assert load_dataset("shapes").name == "shapes"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"one of shapes, cifar10, digits, mnist, got 'svhn'"):
        load_dataset("svhn")


def test_the_known_names_are_public():
    assert DATASETS == ("shapes", "cifar10", "digits", "mnist")


def test_shapes_need_none_of_the_packages_that_read_files():
    program = (
        "import sys; from steadynorm.lab.data import load_dataset; load_dataset('shapes'); "
        "sys.exit(bool({'pyarrow', 'PIL', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
