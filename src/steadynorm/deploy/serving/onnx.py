"""Serve an ONNX file; needs onnxruntime, no torch."""

import onnxruntime


def load(path, threads):
    """Return a function from images to logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(images):
        return session.run(None, {"images": images})[0]

    return predict
