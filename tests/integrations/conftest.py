"""Frameworks import Triton, whose interpreter has to be chosen before that where there is no GPU."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
