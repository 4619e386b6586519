"""Networks of diffraction images: batches, the stage that trains them, and what predicts."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from diffractory.models.c_vae import CVae
from diffractory.models.wide_resnet import WideResNet
from diffractory.store import InputError, generator, track
from diffractory.store.images import IMAGES_PER_FILE, ImageReader
from diffractory.training.fit import Training, check_device, fit, loader
from diffractory.training.launch import Job
from diffractory.training.stage import follow, trained

ENDS = ("2h", "1t")
"""Kinds of images between which a C-VAE draws its line."""

BATCH_SIZE = 32
"""Images that a network predicts at a time."""

ImageNetwork = WideResNet | CVae
Network = TypeVar("Network", WideResNet, CVae)


class ImageBatch(NamedTuple):
    """B images.

    Processes that train together each have some of the W images of a whole batch; else B is W.

    Attributes
    ----------
    images
        Shape (B, rows, columns), float32, in the unit of the store's reference.
    kind
        Index among the classes, -1 for none of them, shape (B,), int64.
    pattern
        Indices in the store, of the whole batch, shape (W,), int64.
    """

    images: Tensor
    kind: Tensor
    pattern: Tensor


class ImageBatches(Dataset[ImageBatch]):
    """Batches of images: item k is batch k of an endless training.

    The length is one pass over the images. Items go on past it: each pass has every image once, in
    an order of its own. An item depends on the seed and k alone, and not on the number of workers.

    Parameters
    ----------
    store
        Image store.
    samples
        Columns ``kind`` and ``pattern``, the index in the store.
    classes
        Kinds in the order of the network's classes.
    batch_size
        Most images in a batch; the images of a pass are divided evenly, to one more or less.
    seed
        Global seed.
    shuffle
        Whether to shuffle; if not, images are in the order of the samples.
    in_memory
        Whether images are read once and kept (2 bytes a pixel). Every worker would read and keep
        them: meant for a ``DataLoader`` without workers.
    """

    def __init__(
        self,
        store: Path,
        samples: pd.DataFrame,
        classes: Sequence[str],
        batch_size: int,
        seed: int,
        shuffle: bool,
        in_memory: bool,
    ) -> None:
        self.reader = ImageReader(store)
        self.pattern = samples["pattern"].to_numpy(np.int64)
        self.kind = pd.Index(classes).get_indexer(pd.Index(samples["kind"])).astype(np.int64)
        self.seed, self.shuffle, self.in_memory = seed, shuffle, in_memory
        n_batches = -(-len(samples) // batch_size)
        self.bounds = np.arange(n_batches + 1) * len(samples) // n_batches
        self.rank, self.world = 0, 1
        self._held: Tensor | None = None

    def shared(self, rank: int, world: int) -> "ImageBatches":
        """Return the same batches, of which one of ``world`` processes has every world-th image.

        Raises
        ------
        InputError
            If a batch has fewer images than there are processes.
        """
        fewest = np.diff(self.bounds).min()
        if fewest < world:
            raise InputError(
                f"{world} processes cannot share a batch of {fewest} images: lower "
                "ued.hardware.devices or nodes, or raise batch_size or the number of images"
            )
        batches = copy(self)
        batches.rank, batches.world = rank, world
        return batches

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, k: int) -> ImageBatch:
        pass_, batch = divmod(k, len(self))
        rows = np.arange(len(self.pattern))
        if self.shuffle:
            rows = generator(self.seed, "image_batches", pass_).permutation(rows)
        whole = rows[self.bounds[batch] : self.bounds[batch + 1]]
        mine = whole[self.rank :: self.world]
        kind, pattern = torch.from_numpy(self.kind[mine]), torch.from_numpy(self.pattern[whole])
        return ImageBatch(self._images(mine).float(), kind, pattern)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the images behind: each worker reads for itself."""
        return self.__dict__ | {"_held": None}

    def _images(self, rows: np.ndarray[Any, Any]) -> Tensor:
        """Return the images in some rows of the samples, in 16 bits as in the store."""
        if not self.in_memory:
            return self._read(self.pattern[rows])
        if self._held is None:
            cuts = range(IMAGES_PER_FILE, len(self.pattern), IMAGES_PER_FILE)
            parts = np.split(self.pattern, cuts)  # what is read has 4 bytes a pixel
            self._held = torch.cat([self._read(part) for part in parts])
        return self._held[torch.from_numpy(rows)]

    def _read(self, patterns: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(self.reader.read(patterns)).half()


def read_samples(images: Path, samples: Path, splits: Sequence[str]) -> pd.DataFrame:
    """Return the samples of some splits, with their index in the store as ``pattern``.

    Raises
    ------
    InputError
        If there are none, or the samples are not those of the store.
    """
    table = pd.read_parquet(samples)
    count = ImageReader(images).shape[0]
    if len(table) != count:
        raise InputError(
            f"{samples} has {len(table)} samples but {images} has {count} images: delete both and "
            "run again"
        )
    table = table.assign(pattern=np.arange(count))
    table = table[table["split"].isin(splits)].reset_index(drop=True)
    if table.empty:
        raise InputError(
            f"{samples} has no image of the split {' or '.join(splits)}: ask for more images"
        )
    return table


def _check_kinds(samples: Path, table: pd.DataFrame, classes: Sequence[str]) -> None:
    unknown = sorted(set(table["kind"]) - set(classes))
    if unknown:
        raise InputError(
            f"{samples} has images of kind {', '.join(unknown)}, which is none of the classes "
            f"{', '.join(classes)}: name it by one of them"
        )


def half_turned(images: Tensor) -> Tensor:
    """Return images (B, rows, columns), of which about half are turned by 180 degrees."""
    turned = torch.rand(len(images), 1, 1, device=images.device) < 0.5
    return torch.where(turned, images.flip((1, 2)), images)


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
        network = _build(name, settings["network"], shape, classes).eval()
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
    network = _build(job.name, job.settings["network"], reader.shape[1:], classes)
    network.normalize_with(torch.from_numpy(reader.reference))
    if job.data["start"] is not None:
        _start_from(network, Path(job.data["start"]), classes)
    ids = pd.concat(tables).set_index("pattern")["sample"]
    training = ImageTraining(network, how, len(batches), job.seed, ids, Path(job.state))
    who = environment.global_rank(), environment.world_size()
    shares = batches.shared(*who), validation.shared(*who)
    fit(training, *shares, job.hardware, environment, job.deadline)


def _build(
    name: str, settings: Mapping[str, Any], shape: Sequence[int], classes: Sequence[str]
) -> ImageNetwork:
    """Return a network with random weights.

    Raises
    ------
    InputError
        If its settings do not go together, or not with the shape of the images.
    """
    if name == "c_vae":
        network = CVae(**settings)
        if settings["image_size"] % 2 ** len(settings["channels"]):
            raise InputError(
                f"image_size is {settings['image_size']} pixels, which cannot be halved "
                f"{len(settings['channels'])} times: take a multiple of "
                f"{2 ** len(settings['channels'])}"
            )
        return network
    least = settings["pool"] ** (len(settings["channels"]) - 2)
    if min(shape) < least:
        raise InputError(
            f"images of {shape[0]} x {shape[1]} pixels are too small for pool: "
            f"{settings['pool']}, which needs {least}: lower it"
        )
    return WideResNet(shape, len(classes), **settings)


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


def load_image_network(model: Path) -> tuple[ImageNetwork, dict[str, Any]]:
    """Return the trained network of a folder, and its hparams.json.

    Raises
    ------
    InputError
        If the folder does not hold one.
    """
    try:
        hparams = json.loads((model / "hparams.json").read_text(encoding="utf-8"))
        network = _build(
            hparams["model"], hparams["network"], hparams["image_shape"], hparams["classes"]
        )
        network.load_state_dict(load_file(model / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{model} does not hold a trained network: {error!r}") from error
    return network.eval(), hparams


def for_inference(network: Network, hardware: Mapping[str, Any]) -> Network:
    """Return a trained network on a device and in the precision that it predicts with.

    Against the network itself, probabilities change by at most 1e-4 with 32-true, and 0.05 with
    bf16-mixed.
    """
    check_device(hardware, "ued")
    half = hardware["precision"] == "bf16-mixed"
    network = network.folded(torch.bfloat16 if half else torch.float32)
    return network.to(hardware["device"])


def predict(
    function: Callable[[Tensor], Tensor], images: Path, samples: pd.DataFrame, device: str
) -> Tensor:
    """Return what a function says of the images of some samples, one row each, in their order.

    Parameters
    ----------
    function
        Takes images on the device, shape (B, rows, columns).
    """
    batches = ImageBatches(images, samples, [], BATCH_SIZE, 0, shuffle=False, in_memory=False)
    some = track(loader(batches, None, 0), "Predicting", len(batches), "batches")
    with torch.inference_mode():
        return torch.cat([function(batch.images.to(device)).cpu() for batch in some])
