"""The data sets of the experiments, and the batches that networks are trained on."""

from steadynorm.lab.data.batches import Augmentation, batches, evaluation_batches
from steadynorm.lab.data.images import Dataset, Images, first, hold_out, some, take
from steadynorm.lab.data.loading import DATASETS, both_sides, check_data_dir, load_dataset

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "Images",
    "batches",
    "both_sides",
    "check_data_dir",
    "evaluation_batches",
    "first",
    "hold_out",
    "load_dataset",
    "some",
    "take",
]
