"""What arms are called."""

from steadynorm.lab.describe.names import data_label, few_arms, pair
from tests.support.records import record


def test_the_pair_is_batch_norm_ours_first_and_no_normalization():
    assert pair({"torch_batch_norm": 1, "batch_norm": 2, "none": 3}) == (2, 3)
    assert pair({"torch_batch_norm": 1, "layer_norm": 2}) == (1, None)


def test_few_arms_are_named_and_many_counted():
    assert few_arms(["none"]) == "no normalization"
    assert few_arms(["none", "layer_norm"]) == "no normalization and layer norm"
    assert few_arms(["none", "layer_norm", "batch_norm"]) == "3 arms"
    assert few_arms(["none", "layer_norm"], most=1) == "2 arms"


def test_data_of_ones_own_are_called_by_the_name_of_the_data_set():
    made = record((), data="/home/me/pictures/pets.npz")
    assert data_label(made) == "/home/me/pictures/pets.npz"  # records that do not know more
    made.resolved["data_name"] = "pets"
    assert data_label(made) == "pets"
    assert data_label(record((), data="shapes")) == "the embedded shapes"
