"""Examples at the end of each command's help; the tests parse them."""

from __future__ import annotations

__all__ = ["EXAMPLES"]

CHECKPOINT = "runs/compare-1/checkpoints/batch_norm-lr0.1-seed0.safetensors"

EXAMPLES = {
    "compare": (
        "steadynorm compare --quick",
        "steadynorm compare --data photos/ --image-size 64 --arms batch_norm group_norm none --seeds 0 1 2",
        "steadynorm compare --resume runs/compare-1",
    ),
    "sweep": (
        "steadynorm sweep --quick",
        "steadynorm sweep --data cifar10 --lr 0.03 0.1 0.3 --batch-size 32 128 --arms batch_norm none",
    ),
    "shift": (
        "steadynorm shift --quick",
        "steadynorm shift --data cifar10 --data-dir cifar/ --corruptions gaussian_noise fog --severities 3 5",
    ),
    "stream": (
        "steadynorm stream --quick",
        "steadynorm stream --data cifar10 --epochs 10 --seeds 0 1 2",
    ),
    "scale": (
        "steadynorm scale --quick",
        "torchrun --nproc-per-node 4 -m steadynorm scale --data cifar10 --batch-size 128 1024",
    ),
    "landscape": (
        "steadynorm landscape --quick",
        "steadynorm landscape --data cifar10 --arms batch_norm none --probe-every 50",
    ),
    "classic": (
        "steadynorm classic --quick",
        "steadynorm classic --data mnist --data-dir mnist/ --seeds 0 1 2",
    ),
    "statistics": (
        "steadynorm statistics --quick",
        "steadynorm statistics --data cifar10 --steps 500",
    ),
    "recalibration": (
        "steadynorm recalibration --quick",
        f"steadynorm recalibration {CHECKPOINT} --data cifar10 --images 100 1000",
    ),
    "report": (
        "steadynorm report runs/compare-1",
        "steadynorm report runs/compare-1 --json",
    ),
    "doctor": (
        "steadynorm doctor package.module:build_model --weights best.pth --data train/",
        f"steadynorm doctor {CHECKPOINT} --data cifar10 --treat repaired.safetensors",
        "steadynorm doctor --explain train-eval-gap",
    ),
    "recalibrate": (
        "steadynorm recalibrate package.module:build_model --weights run.ckpt --weights-key ema --data train/ "
        "--save ema.safetensors",
        f"steadynorm recalibrate {CHECKPOINT} --data cifar10 --images 2000 --save again.safetensors",
    ),
    "adapt": (
        "steadynorm adapt package.module:build_model --weights best.pth --clean validation/ --data stream/",
        "steadynorm adapt package.module:build_model --weights best.pth --gate gate.safetensors --data stream.npz",
    ),
    "export": (
        f"steadynorm export {CHECKPOINT} --input-size 128 128 --format onnx",
        "steadynorm export package.module:build_model --weights best.pth --data cifar10 --format onnx "
        "--quantize none static",
    ),
    "bench kernels": (
        "steadynorm bench kernels --max-mb 8 --seconds 0.1",
        "steadynorm bench kernels --op norm_relu --dtypes bfloat16 --out results/",
    ),
    "bench layers": (
        "steadynorm bench layers --max-mb 16",
        "steadynorm bench layers --layers batch_renorm gated_batch_norm --out results/",
    ),
    "bench step": (
        "steadynorm bench step --networks cnn --norms batch_norm none",
        "steadynorm bench step --inference --batch 1",
    ),
    "bench workers": (
        "steadynorm bench workers --workers 1 2",
        "steadynorm bench workers --network resnet20 --batch 128 --out results/",
    ),
    "bench table": ("steadynorm bench table results/bench_kernels_cpu_20261122.json",),
    "warmup": (
        "steadynorm warmup --shapes 128x64x32x32 --dtypes float32",
        "steadynorm warmup --layers batch_norm gated_batch_norm --activations none relu --json",
    ),
}
"""Command -> example lines."""
