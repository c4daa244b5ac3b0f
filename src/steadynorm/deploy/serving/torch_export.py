"""Serve a program that torch.export saved; needs torch."""

import torch
import torch.ao.quantization.fx._decomposed  # operations of programs in int8


def load(path, threads):
    """Return a function from images to logits."""
    torch.set_num_threads(threads)
    model = torch.export.load(path).module()

    @torch.inference_mode()
    def predict(images):
        return model(torch.from_numpy(images)).numpy()

    return predict
