"""Frames a second and latencies of the networks that steer an experiment, one frame at a time.

A frame is a raw image of 261 x 261 pixels; each is classified by CNNSyn and scored by the C-VAE.
Weights are random, which does not change the time. The peer is the classifier as it was released,
in plain PyTorch: float32, with batch normalization apart from the convolutions, and the differences
from the reference made beforehand. LCLS delivers 120 frames a second. The last rows are of frames
binned by 3, for which the same networks, pooled by 3 in place of 9, are trained anew.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from diffractory.models.c_vae import CVae
from diffractory.models.wide_resnet import WideResNet, difference_channels

REQUIRED = 120
"""Frames a second of LCLS."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ReleasedLayer(nn.Module):
    """Two convolutions and a shortcut, each followed by what the released code has there."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.both = nn.Sequential(
            nn.Conv2d(before, after, 7, padding=3, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(after, after, 7, padding=3, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return shape (B, after, rows, columns)."""
        return self.both(x) + self.shortcut(x)


def released_classifier() -> nn.Module:
    """Return the released layout for images of 261 x 261 pixels, shape (B, 2, 261, 261)."""
    return nn.Sequential(
        nn.Conv2d(2, 16, 7, padding=3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        ReleasedLayer(16, 32), ReleasedLayer(32, 32), nn.MaxPool2d(9),
        ReleasedLayer(32, 64), ReleasedLayer(64, 64), nn.MaxPool2d(9),
        ReleasedLayer(64, 128), ReleasedLayer(128, 128), nn.AvgPool2d(3),
        nn.Flatten(), nn.Linear(128, 7),
    ).eval()  # fmt: skip


def latencies(work: Callable[[Tensor], Tensor], frames: Tensor) -> np.ndarray:
    """Return the seconds from a frame in memory to its result there, frame by frame."""
    device = frames.device
    seconds = []
    with torch.inference_mode():
        for k in range(3 + len(frames)):
            frame = frames[k % len(frames)][None].cpu()
            start = time.perf_counter()
            work(frame.to(device)).cpu()
            seconds.append(time.perf_counter() - start)
    return np.array(seconds[3:])


def latencies_of_peer(frames: Tensor, reference: Tensor) -> np.ndarray:
    """Return those of the released layout, which is handed the same differences each time."""
    peer = released_classifier().to(frames.device)
    channels = difference_channels(frames[:1], reference)
    return latencies(lambda _: peer(channels), frames)


def networks(size: int, device: str) -> tuple[WideResNet, CVae]:
    """Return classifier and autoencoder for frames of 261 or 87 pixels along a side."""
    torch.manual_seed(0)
    classifier = WideResNet((size, size), 7, pool=9 if size == 261 else 3)
    classifier.normalize_with(torch.rand(size, size))
    autoencoder = CVae(256 if size == 261 else 80)
    return classifier.to(device).eval(), autoencoder.to(device).eval()


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer frames")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    device, count = options.device, (4 if options.quick else 300)
    if device == "cuda":
        count *= 10
    rows: dict[str, np.ndarray] = {}
    worst = 0.0
    for size in (261, 87):
        some = torch.rand(min(count, 20), size, size, device=device)
        frames = some.repeat(count // len(some), 1, 1)
        classifier, autoencoder = networks(size, device)
        if size == 261:
            rows["released classifier"] = latencies_of_peer(frames, classifier.reference)
        for precision, dtype in PRECISIONS.items():
            classify, score = classifier.folded(dtype), autoencoder.folded(dtype)
            with torch.inference_mode():
                exact = classifier.probabilities(frames[:4])
                worst = max(worst, (classify.probabilities(frames[:4]) - exact).abs().max().item())

            def both(x: Tensor, classify=classify, score=score) -> Tensor:
                return torch.cat([classify.probabilities(x)[0], score.score(x)])

            for name, work in (
                ("wide_resnet", classify.probabilities), ("c_vae", score.score), ("both", both)
            ):  # fmt: skip
                rows[f"{name} {size} {precision}"] = latencies(work, frames)
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {threads} threads"
    print(f"{where}, {count} frames each")
    print(f"{'network':28} {'frames/s':>9} {'median ms':>10} {'p99 ms':>8}")
    result: dict[str, dict[str, float]] = {}
    for name, seconds in rows.items():
        rate, (median, p99) = 1 / seconds.mean(), 1e3 * np.percentile(seconds, [50, 99])
        print(f"{name:28} {rate:9.1f} {median:10.2f} {p99:8.2f}")
        result[name.replace(" ", "_")] = {
            "frames_per_second": float(f"{rate:.4g}"), "latency_p99_ms": float(f"{p99:.4g}"),
        }  # fmt: skip
    best = min(("both 261 float32", "both 261 bfloat16"), key=lambda name: rows[name].mean())
    print(f"steering: {best}; LCLS delivers {REQUIRED} frames a second")
    print(f"largest difference of a probability from that of the network as trained: {worst:.1e}")
    print(json.dumps({
        **result[best.replace(" ", "_")],
        "ratio_vs_released": float(f"{rows['released classifier'].mean() / rows[best].mean():.4g}"),
        "models": result, "device": device, "threads": threads,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
