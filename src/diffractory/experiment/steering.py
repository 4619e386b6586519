"""Scores of images during an experiment, from one file to the next."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diffractory.errors import InputError
from diffractory.experiment.geometry import BadImageError, Geometry, Grid, to_grid
from diffractory.experiment.series import image_files, read_image
from diffractory.models.c_vae import CVae
from diffractory.models.wide_resnet import WideResNet
from diffractory.training.image_networks import for_inference, load_image_network

POLL = 0.05
"""Seconds between two looks at a watched folder; a file that did not change between is complete."""

CLASSIFIERS = ("cnn_exp", "cnn_syn")
"""Folders of the classifiers; the first that is there is taken."""


HEADER = ("file", "class", "probability", "distance", "side", "latency_ms", "error")
"""Names of the columns that are printed."""

WIDTHS = (24, 14, 12, 10, 6, 11, 0)
"""Of the columns on a terminal, characters."""


@dataclass(frozen=True)
class Score:
    """What the networks say of an image.

    Attributes
    ----------
    file
        Name.
    kind, probability
        The most likely class.
    distance
        To the line between both phases in latent space.
    side
        ``near`` if that is less than half of the length of the line, else ``off``.
    latency
        From opening the file to the score, ms.
    error
        What is wrong with the image, if it has no score.
    """

    file: str
    kind: str = ""
    probability: float = math.nan
    distance: float = math.nan
    side: str = ""
    latency: float = math.nan
    error: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """Return them as text, in the order of `HEADER`."""
        if self.error:
            return self.file, "", "", "", "", "", self.error
        numbers = f"{self.probability:.4f}", f"{self.distance:.4f}", f"{self.latency:.1f}"
        return self.file, self.kind, *numbers[:2], self.side, numbers[2], ""


class Scorer:
    """The networks of a folder, ready to score images.

    Parameters
    ----------
    models
        Holds ``cnn_exp`` or ``cnn_syn``, and ``c_vae``.
    geometry
        How the images were taken.

    Raises
    ------
    InputError
        If a network is missing or broken, or both read images of different pixels.
    """

    def __init__(self, models: Path, geometry: Geometry) -> None:
        names = [name for name in CLASSIFIERS if (models / name / "hparams.json").is_file()]
        if not names or not (models / "c_vae" / "hparams.json").is_file():
            missing = "c_vae" if names else " or ".join(CLASSIFIERS)
            raise InputError(
                f"{models} has no {missing}: train it with snakemake, or name another folder with "
                "--models"
            )
        hardware = {
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "precision": "32-true",
        }
        classifier, hparams = load_image_network(models / names[0])
        autoencoder, others = load_image_network(models / "c_vae")
        pixels = ("image_shape", "pixel_size", "beam_stop")
        if any(hparams[name] != others[name] for name in pixels):
            raise InputError(
                f"{names[0]} and c_vae in {models} read images of different pixels: train both on "
                "images of one detector"
            )
        assert isinstance(classifier, WideResNet)
        assert isinstance(autoencoder, CVae)
        self.classifier = for_inference(classifier, hardware)
        self.autoencoder = for_inference(autoencoder, hardware)
        self.corridor = float(torch.linalg.vector_norm(autoencoder.ends[1] - autoencoder.ends[0]))
        self.classes: list[str] = hparams["classes"]
        rows, columns = hparams["image_shape"]
        self.grid = Grid((rows, columns), hparams["pixel_size"], hparams["beam_stop"])
        self.geometry, self.device = geometry, hardware["device"]
        self._look(self.grid.lit.astype(np.float32))  # the first call prepares both networks

    def score(self, path: Path) -> Score:
        """Return the score of the image in a file."""
        start = time.perf_counter()
        try:
            image = to_grid(read_image(path), self.geometry, self.grid)
        except BadImageError as error:
            return Score(path.name, error=f"{error.reason}: {error.detail}")
        kind, probability, distance = self._look(image)
        side = "near" if distance < self.corridor / 2 else "off"
        latency = 1000 * (time.perf_counter() - start)
        return Score(path.name, kind, probability, distance, side, latency)

    def _look(self, image: NDArray[np.float32]) -> tuple[str, float, float]:
        with torch.inference_mode():
            batch = torch.from_numpy(image)[None].to(self.device)
            probability, index = self.classifier.probabilities(batch)[0].max(dim=0)
            distance = self.autoencoder.score(batch)
        return self.classes[int(index)], float(probability), float(distance)


def steer(folder: Path, scorer: Scorer, watch: bool) -> Iterator[Score]:
    """Yield the score of each image in a folder in order of name, and then of new ones if watched.

    In a watched folder only complete files are read, and one that could not be read is read again
    once it has changed.

    Raises
    ------
    InputError
        If the folder cannot be read, or has no image and is not watched.
    """
    if not watch and not image_files(folder):
        raise InputError(f"{folder} has no image (PNG, TIFF or .npy): name another, or add --watch")
    scored: set[Path] = set()
    last: dict[Path, tuple[int, int]] = {}
    failed: dict[Path, tuple[int, int]] = {}
    while True:
        for path in image_files(folder):
            if path in scored or not (state := _state(path)):
                continue
            complete = not watch or last.get(path) == state
            last[path] = state
            if complete and failed.get(path) != state:
                score = scorer.score(path)
                if score.error:
                    failed[path] = state
                else:
                    scored.add(path)
                yield score
        if not watch:
            return
        time.sleep(POLL)


def line(fields: Sequence[str], aligned: bool) -> str:
    """Return fields as a line, in columns to look at, or with tabs for a program to read."""
    if not aligned:
        return "\t".join(re.sub(r"\s", " ", text) for text in fields)
    return " ".join(f"{text:{width}}" for text, width in zip(fields, WIDTHS, strict=True)).rstrip()


def summary(scores: Sequence[Score]) -> str:
    """Return how many images were scored, how fast."""
    latency = [score.latency for score in scores if not score.error]
    if not latency:
        return f"0 images scored, {len(scores)} not"
    return (
        f"{len(latency)} images scored, {len(scores) - len(latency)} not; "
        f"{1000 / np.mean(latency):.1f} frames/s, latency {np.median(latency):.1f} ms in the "
        f"median and {np.percentile(latency, 99):.1f} ms at the 99th percentile"
    )


def _state(path: Path) -> tuple[int, int] | None:
    """Return size and time of the last change, or None if the file is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns
