"""Serve a TorchScript file; needs torch."""

import warnings

import torch


def load(path, threads):
    """Return a function from images to logits."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # torch marks TorchScript deprecated
    model = torch.jit.load(path)

    @torch.inference_mode()
    def predict(images):
        return model(torch.from_numpy(images)).numpy()

    return predict
