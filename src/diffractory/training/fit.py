"""Training of any network of spot lists, with Lightning: exact when it is killed and resumed."""

import logging
import math
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from diffractory.models.spot_lists import SpotListNetwork
from diffractory.store import InputError, generator, track
from diffractory.training.spots import Batch, SpotBatches

WARM_UP = 0.05
"""Part of the training in which the learning rate rises, where it follows a cosine."""


class Training(LightningModule):
    """One network in training.

    Parameters
    ----------
    network
        What is trained.
    settings
        Configuration section ``training`` of the network.
    steps
        Batches per epoch.
    seed
        Global seed.

    Attributes
    ----------
    epochs
        One row of metrics.csv for every epoch so far; checkpoints hold it.
    """

    def __init__(
        self, network: SpotListNetwork, settings: Mapping[str, Any], steps: int, seed: int
    ) -> None:
        super().__init__()
        self.network = network
        self.settings, self.steps, self.seed = settings, steps, seed
        self.epochs: list[dict[str, float]] = []
        self.sums: dict[str, Tensor | float] = {}

    def on_train_epoch_start(self) -> None:
        """Forget the sums of the epoch before."""
        self.sums = {}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let what is drawn depend on seed and step alone, so that a resumed run draws the same."""
        step = self.current_epoch * self.steps + batch_idx
        torch.manual_seed(int(generator(self.seed, "training", step).integers(2**63)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        output = self.network(*varied(batch.spots, batch.mask, self.settings))
        loss = self.network.loss(output, batch.crystal_system, batch.space_group)
        self._add(training_loss=loss.detach() * len(batch.spots), patterns=len(batch.spots))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum up the negative logarithms of the probabilities of the truth, and what is right."""
        said = self.network.opinions(self.network(batch.spots, batch.mask))
        self._add(validation_patterns=len(batch.spots))
        for name, probability, truth in (
            ("crystal_system", said.crystal_system, batch.crystal_system),
            ("space_group", said.space_group, batch.space_group),
        ):
            if probability is not None:
                of_truth = probability.gather(1, truth[:, None]).clamp(min=1e-12)
                self._add(
                    validation_loss=-of_truth.log().sum(),
                    **{f"{name}_accuracy": (probability.argmax(dim=-1) == truth).sum()},
                )

    def on_validation_epoch_end(self) -> None:
        """Add a row to `epochs`."""
        sums = {name: float(value) for name, value in self.sums.items()}
        n, n_validated = sums.pop("patterns"), sums.pop("validation_patterns")
        row = {
            name: value / (n if name == "training_loss" else n_validated)
            for name, value in sums.items()
        }
        if not math.isfinite(row["training_loss"]):
            raise InputError(
                f"the loss of {type(self.network).__name__} is not finite in epoch "
                f"{self.current_epoch}: lower its learning_rate, or train with precision 32-true"
            )
        before = self.epochs[-1]["patterns_seen"] if self.epochs else 0
        seen = {"epoch": self.current_epoch, "patterns_seen": int(before + n)}
        self.epochs.append(seen | row)
        self.log_dict(row)

    def _add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def configure_optimizers(self) -> Any:
        """Return Adam, with decoupled weight decay if any, and the learning rate of every step."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.settings["learning_rate"],
            weight_decay=self.settings["weight_decay"],
        )
        if self.settings["schedule"] == "constant":
            return optimizer
        total = self.settings["epochs"] * self.steps // self.settings["accumulate"]
        warm_up = max(1, round(WARM_UP * total))

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep `epochs`."""
        checkpoint["epochs"] = self.epochs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take `epochs` back."""
        self.epochs = checkpoint["epochs"]


def varied(spots: Tensor, mask: Tensor, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return patterns, spots (B, N, 3) and mask (B, N), changed at random as the settings ask.

    Each is turned in its plane by any angle (``rotate``), enlarged by a factor of which the
    logarithm has a standard deviation (``scale_jitter``), and loses a share of its spots between 0
    and the greatest (``drop_spots``).
    """
    n, device = len(spots), spots.device
    if settings["rotate"]:
        angle = 2 * torch.pi * torch.rand(n, 1, device=device)
        x, y, intensity = spots.unbind(dim=-1)
        cosine, sine = angle.cos(), angle.sin()
        spots = torch.stack([cosine * x - sine * y, sine * x + cosine * y, intensity], dim=-1)
    if settings["scale_jitter"]:
        factor = torch.exp(settings["scale_jitter"] * torch.randn(n, 1, 1, device=device))
        spots = torch.cat([spots[..., :2] * factor, spots[..., 2:]], dim=-1)
    if settings["drop_spots"]:
        share = settings["drop_spots"] * torch.rand(n, 1, device=device)
        mask = mask & (torch.rand(mask.shape, device=device) >= share)
    return spots, mask


class EpochOfBatches(Sampler[int]):
    """The numbers of the batches of the current epoch, of an endless training."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __iter__(self) -> Iterator[int]:
        # Lightning's own number is one too low when a resumed training asks for its batches.
        first = len(self.training.epochs) * self.training.steps
        return iter(range(first, first + self.training.steps))

    def __len__(self) -> int:
        return self.training.steps


class Progress(Callback):
    """A progress bar, or lines in the log, over the patterns of all epochs."""

    def __init__(self, label: str, size: int) -> None:
        self.label, self.size = label, size

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar with what is left."""
        left = (trainer.max_epochs or 0) - trainer.current_epoch
        total = left * int(trainer.num_training_batches) * self.size
        self.bar = track(repeat(None), self.label, total, "patterns", self.size)
        next(self.bar)

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the bar."""
        next(self.bar)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self.bar.close()  # type: ignore[attr-defined]


def loader(batches: SpotBatches, sampler: Any, workers: int) -> DataLoader[Batch]:
    """Return a loader of whole batches, the same for any number of worker processes."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
    )


def check_device(hardware: Mapping[str, Any]) -> None:
    """Raise InputError if there is no such device."""
    if hardware["device"] == "cuda" and not torch.cuda.is_available():
        raise InputError("symmetry.hardware.device is cuda, but no CUDA device is visible: set cpu")


def fit(
    training: Training,
    batches: SpotBatches,
    validation: SpotBatches,
    hardware: Mapping[str, Any],
    folder: Path,
) -> None:
    """Train to the last epoch, going on from ``last.ckpt`` in the folder where there is one.

    The folder also gets ``best.ckpt``, the epoch of lowest validation loss, and logs for
    TensorBoard.
    """
    last = folder / "last.ckpt"
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # advice on other products
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's own
        try:
            _trainer(training, hardware, folder).fit(
                training,
                loader(batches, EpochOfBatches(training), hardware["workers"]),
                loader(validation, None, 0),
                ckpt_path=last if last.exists() else None,
                weights_only=True,
            )
        except SIGTERMException:
            # Its exit status would be 0, as if the training had come to its end.
            sys.exit(128 + signal.SIGTERM)


def _trainer(training: Training, hardware: Mapping[str, Any], folder: Path) -> Trainer:
    settings = training.settings
    checkpoint = partial(
        ModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False
    )
    return Trainer(
        accelerator="gpu" if hardware["device"] == "cuda" else "cpu",
        devices=1,
        precision=hardware["precision"],
        plugins=[LightningEnvironment()],  # whatever a scheduler has set for other purposes
        max_epochs=settings["epochs"],
        accumulate_grad_batches=settings["accumulate"],
        gradient_clip_val=1.0,
        deterministic="warn",
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[
            EarlyStopping("validation_loss", patience=settings["patience"]),
            checkpoint("best", monitor="validation_loss"),
            checkpoint("last"),  # save_last=True would wait for the next best
            Progress(f"Training {type(training.network).__name__}", settings["batch_size"]),
        ],
        log_every_n_steps=training.steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
