"""The stage behind the rule `train_image_network`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import Tensor

from diffractory.models.c_vae import CVae
from diffractory.store import InputError, generator
from diffractory.store.images import ImageReader
from diffractory.training.fit import Training, fit
from diffractory.training.image_networks import ImageNetwork, build, load_image_network, predict
from diffractory.training.images import ImageBatch, ImageBatches, half_turned, read_samples
from diffractory.training.launch import Job
from diffractory.training.stage import follow, trained

ENDS = ("2h", "1t")
"""Kinds of images between which a C-VAE draws its line."""


class ImageTraining(Training):
    """A network of images in training."""

    named = "samples"
    network: ImageNetwork

    def loss(self, batch: ImageBatch) -> Tensor:
        """Return the loss of images, turned at random if the settings ask for it."""
        images = half_turned(batch.images) if self.settings["rotate"] else batch.images
        return self.network.loss(images, batch.kind)

    def measures(self, batch: ImageBatch) -> Iterator[tuple[str, Tensor]]:
        """Return what the network does."""
        yield from self.network.measures(batch.images, batch.kind).items()

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam, or stochastic gradient descent with momentum."""
        how = self.settings
        if how["optimizer"] == "adam":
            return super().optimizer()
        return torch.optim.SGD(
            self.network.parameters(),
            lr=how["learning_rate"],
            momentum=how["momentum"],
            weight_decay=how["weight_decay"],
        )


def train_image_network(
    name: str,
    images: Path,
    samples: Path,
    model: Path,
    classes: Sequence[str],
    settings: Mapping[str, Any],
    hardware: Mapping[str, Any],
    seed: int,
    minutes: float | None = None,
    start: Path | None = None,
) -> None:
    """Train one network and write the folder ``model``, whose name the record goes by.

    Kills and limits of time are survived as `train_network` does.

    Parameters
    ----------
    name
        ``wide_resnet`` or ``c_vae``.
    images, samples
        Image store and the table of its samples.
    model
        Folder to write: model.safetensors (the epoch of lowest validation loss), hparams.json,
        architecture.json, last.ckpt, metrics.csv, logs for TensorBoard and run.json.
    classes
        Kinds of images in the order of the classes.
    settings
        Sections ``network`` and ``training`` of the network.
    hardware
        Configuration section ``ued.hardware``. Its ``devices`` and ``nodes`` share each batch.
    minutes
        Time that the job of this process has, if it is limited. Before it is over the training
        stops after an epoch, and the process ends with the exit status 75.
    start
        Folder of a trained network of the same kind whose weights the training starts from.

    Raises
    ------
    InputError
        If there is nothing to train or to validate with, the start does not fit, the device is not
        there, the loss is not finite, a checkpoint is damaged, or another process trains this
        model.
    """
    inputs = [images, samples]
    if start is not None:
        inputs += [start / "model.safetensors", start / "hparams.json"]
    data = {
        "images": str(images),
        "samples": str(samples),
        "classes": list(classes),
        "start": None if start is None else str(start),
    }
    config = {name: dict(settings), "classes": list(classes)}
    job = Job(__name__, "ued", name, data, dict(settings), dict(hardware), seed)
    with trained(model, job, config, inputs, minutes) as result:
        reader = ImageReader(images)
        shape = reader.shape[1:]
        network = build(name, settings["network"], shape, classes).eval()
        network.load_state_dict(result.weights)
        hparams = {
            "model": name,
            "network": dict(settings["network"]),
            "training": dict(settings["training"]),
            "loss": network.loss_name,
            "classes": list(classes),
            "image_shape": list(shape),
            "pixel_size": reader.pixel_size,
            "beam_stop": reader.beam_stop,
        }
        train = read_samples(images, samples, ["train"])
        if isinstance(network, CVae):
            hparams["means"] = _fit_ends(network, images, train, hardware["device"])
        example = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
        result.write(network, hparams, follow(network, example))
        result.facts["training_images"] = len(train)
        result.facts["parameters"] = sum(p.numel() for p in network.parameters())


def train_epochs(job: Job, environment: ClusterEnvironment) -> None:
    """Train a network, as one of the processes that share the work.

    Parameters
    ----------
    environment
        Tells this process from the others.

    Raises
    ------
    InputError
        As `train_image_network` does.
    """
    how, classes = job.settings["training"], job.data["classes"]
    images, samples = Path(job.data["images"]), Path(job.data["samples"])
    reader = ImageReader(images)
    in_memory = 2 * np.prod(reader.shape) <= job.hardware["data_memory"] * 2**30
    tables = [read_samples(images, samples, [split]) for split in ("train", "validation")]
    _check_kinds(samples, pd.concat(tables), classes)
    batches, validation = (
        ImageBatches(images, table, classes, how["batch_size"], job.seed, shuffle, in_memory)
        for table, shuffle in zip(tables, (True, False), strict=True)
    )
    torch.manual_seed(int(generator(job.seed, job.name, "weights").integers(2**63)))
    network = build(job.name, job.settings["network"], reader.shape[1:], classes)
    network.normalize_with(torch.from_numpy(reader.reference))
    if job.data["start"] is not None:
        _start_from(network, Path(job.data["start"]), classes)
    ids = pd.concat(tables).set_index("pattern")["sample"]
    training = ImageTraining(network, how, len(batches), job.seed, ids, Path(job.state))
    who = environment.global_rank(), environment.world_size()
    shares = batches.shared(*who), validation.shared(*who)
    fit(training, *shares, job.hardware, environment, job.deadline)


def _check_kinds(samples: Path, table: pd.DataFrame, classes: Sequence[str]) -> None:
    unknown = sorted(set(table["kind"]) - set(classes))
    if unknown:
        raise InputError(
            f"{samples} has images of kind {', '.join(unknown)}, which is none of the classes "
            f"{', '.join(classes)}: name it by one of them"
        )


def _start_from(network: ImageNetwork, start: Path, classes: Sequence[str]) -> None:
    """Take the weights of a trained network, but not its reference."""
    other, hparams = load_image_network(start)
    if hparams["classes"] != list(classes):
        raise InputError(
            f"{start} tells {', '.join(hparams['classes'])} apart, and not "
            f"{', '.join(classes)}: the training cannot start from it"
        )
    try:
        network.load_state_dict(other.state_dict() | dict(network.named_buffers(recurse=False)))
    except RuntimeError as error:
        raise InputError(f"{start} is a network of other settings: take the same") from error


def _fit_ends(
    network: CVae, images: Path, train: pd.DataFrame, device: str
) -> dict[str, list[float]]:
    """Let the network know, and return, the mean latent vectors of the two phases."""
    means = {}
    for kind in ENDS:
        samples = train[train["kind"] == kind]
        if samples.empty:
            raise InputError(f"{images} has no training image of kind {kind}: ask for some")
        means[kind] = predict(network.to(device).latent, images, samples, device).mean(0)
    network.cpu().ends.copy_(torch.stack([means[kind] for kind in ENDS]))
    return {kind: mean.tolist() for kind, mean in means.items()}
