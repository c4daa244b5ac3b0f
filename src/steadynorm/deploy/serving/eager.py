"""Serve a pickled torch module: the model as it was before the export, to compare with."""

import torch


def load(path, threads):
    """Return a function from images to logits."""
    torch.set_num_threads(threads)
    model = torch.load(path, weights_only=False)

    @torch.inference_mode()
    def predict(images):
        return model(torch.from_numpy(images)).numpy()

    return predict
