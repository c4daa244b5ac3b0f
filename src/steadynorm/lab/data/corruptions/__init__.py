"""Corruptions of images: noise, blur, light and lost detail in five severities, after CIFAR-10-C."""

from steadynorm.lab.data.corruptions.table import CORRUPTIONS, OF_COLOUR, SEVERITIES, Corruption, corrupt

__all__ = ["CORRUPTIONS", "OF_COLOUR", "SEVERITIES", "Corruption", "corrupt"]
