"""Serve a package that AOTInductor compiled; needs torch, no compiler."""

import torch


def load(path, threads):
    """Return a function from images to logits."""
    torch.set_num_threads(threads)
    model = torch._inductor.aoti_load_package(path)

    @torch.inference_mode()
    def predict(images):
        return model(torch.from_numpy(images)).numpy()

    return predict
