"""Training of any network, with Lightning: exact when it is killed and resumed."""

import logging
import math
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import numpy as np
import pandas as pd
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from diffractory.store import InputError, generator, track
from diffractory.training.batches import loader

WARM_UP = 0.05
"""Part of the training in which the learning rate rises, where it follows a cosine."""

PLATEAU = {"factor": 0.6, "patience": 30, "min_lr": 1e-5}
"""How the learning rate falls where it follows the validation loss: as for DP-CDVAE (Pakornchote et
al., 2024)."""

MARGIN = 60.0
"""Time of a job before this module is imported, and after the last epoch, seconds."""


class Training(LightningModule):
    """One network in training, in one process or in several that share each batch.

    Steps and learning rate do not depend on their number: the losses of the processes are weighted
    so that the mean of their gradients is that of the whole batch.

    A study tells by `loss` and `measures` what is trained and how it is validated. Its batches are
    named tuples: first the input of the patterns that this process has of the batch, and among the
    rest ``pattern``, the indices in the store of all patterns of the batch.

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
    ids
        Name of each training and validation pattern, by its index in the store.
    state
        Folder for checkpoints and logs.

    Attributes
    ----------
    named
        What `ids` are, in the plural.
    gradient_clip
        Greatest norm, or greatest element, of a gradient.
    clip_by
        Which of the two.
    epochs
        One row of metrics.csv for every epoch so far; checkpoints hold it.
    """

    named: str
    gradient_clip: float | None = None
    clip_by: Literal["norm", "value"] = "norm"

    def __init__(
        self,
        network: nn.Module,
        settings: Mapping[str, Any],
        steps: int,
        seed: int,
        ids: pd.Series,
        state: Path,
    ) -> None:
        super().__init__()
        self.network = network
        self.settings, self.steps, self.seed = settings, steps, seed
        self.ids, self.state = ids, state
        self.epochs: list[dict[str, float]] = []
        self.sums: dict[str, Tensor | float] = {}

    def loss(self, batch: Any) -> Tensor:
        """Return the mean loss over the patterns that this process has of a training batch."""
        raise NotImplementedError

    def measures(self, batch: Any) -> Iterator[tuple[str, Tensor]]:
        """Return columns of metrics.csv with sums over validation patterns; a name may come twice.

        ``validation_loss`` is one of them.
        """
        raise NotImplementedError

    def on_train_start(self) -> None:
        """Let each of several processes end at once: Lightning would have them agree first."""
        if self.trainer.world_size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_epoch_start(self) -> None:
        """Forget the sums of the epoch before, and follow a plateau."""
        self.sums = {}
        if self.settings["schedule"] == "plateau":
            # From all epochs, since Lightning writes a checkpoint before it moves this schedule.
            (optimizer,) = self.trainer.optimizers
            follow_plateau(optimizer, self.settings["learning_rate"], self.epochs)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let draws depend on seed, step and process, so that a resumed run draws the same."""
        step = self.current_epoch * self.steps + batch_idx
        item = f"{step}/{self.global_rank}" if self.global_rank else step
        torch.manual_seed(int(generator(self.seed, "training", item).integers(2**63)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch, or the part in it of what this process has of the batch."""
        loss = self.loss(batch)
        self._refuse_not_finite(loss, batch)
        n, whole = len(batch[0]), len(batch.pattern)
        self._add("training_loss", loss.detach() * n)
        self._add("patterns", n)
        return loss * (n * self.trainer.world_size / whole)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Sum up the measures."""
        self._add("validation_patterns", len(batch[0]))
        for name, value in self.measures(batch):
            if name == "validation_loss":
                self._refuse_not_finite(value, batch)
            self._add(name, value)

    def _refuse_not_finite(self, loss: Tensor, batch: Any) -> None:
        if loss.isfinite():
            return
        names = sorted(self.ids[batch.pattern.tolist()].unique())
        kept = (
            f"{self.state / 'last.ckpt'} has all up to the epoch before"
            if self.epochs
            else "there is no epoch before it to go on from"
        )
        raise InputError(
            f"the loss of {type(self.network).__name__} is not finite in epoch "
            f"{self.current_epoch} at a batch of the {self.named} {', '.join(names)}: lower its "
            "learning_rate, train with precision 32-true, or look at the patterns of these "
            f"{self.named}; {kept}"
        )

    def on_validation_epoch_end(self) -> None:
        """Add a row to `epochs`."""
        of_process = torch.tensor(
            [float(value) for value in self.sums.values()], dtype=torch.float64, device=self.device
        )
        total = self.trainer.strategy.reduce(of_process, reduce_op="sum").tolist()
        sums = dict(zip(self.sums, total, strict=True))
        n, n_validated = sums.pop("patterns"), sums.pop("validation_patterns")
        row = {
            name: value / (n if name == "training_loss" else n_validated)
            for name, value in sums.items()
        }
        before = self.epochs[-1]["patterns_seen"] if self.epochs else 0
        seen = {"epoch": self.current_epoch, "patterns_seen": int(before + n)}
        self.epochs.append(seen | row)
        self.trainer.should_stop = ended(self.epochs, self.settings)
        self.log_dict(row, sync_dist=True)

    def _add(self, name: str, value: Tensor | float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam, with decoupled weight decay if any."""
        return torch.optim.AdamW(
            self.network.parameters(),
            lr=self.settings["learning_rate"],
            weight_decay=self.settings["weight_decay"],
        )

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the learning rate of every step."""
        optimizer = self.optimizer()
        if self.settings["schedule"] in ("constant", "plateau"):
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


def ended(epochs: Sequence[Mapping[str, float]], settings: Mapping[str, Any]) -> bool:
    """Return whether a training is at its end: all epochs, or ``patience`` without a better one.

    Where there is a ``target_accuracy``, as many epochs must have reached it instead.
    """
    if len(epochs) in (0, settings["epochs"]):
        return bool(epochs)
    if target := settings.get("target_accuracy"):
        last = [epoch["accuracy"] for epoch in epochs[-settings["patience"] :]]
        return len(last) == settings["patience"] and min(last) >= target
    best = np.argmin([epoch["validation_loss"] for epoch in epochs])
    return bool(len(epochs) - 1 - best >= settings["patience"])


def follow_plateau(
    optimizer: torch.optim.Optimizer, learning_rate: float, epochs: Sequence[Mapping[str, float]]
) -> None:
    """Lower the learning rate by `PLATEAU`, from that of the first epoch and all losses so far."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **PLATEAU)  # type: ignore[arg-type]
    for epoch in epochs:
        schedule.step(epoch["validation_loss"])


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


class Deadline(Callback):
    """Stop after an epoch if the next, as long as the longest so far, may not end in time.

    Parameters
    ----------
    deadline
        When the job is killed, seconds since 1970.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline, self.longest = deadline, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock of the first process."""
        now = time.time()
        self.longest, self.start = max(self.longest, now - self.start), now
        late = now + 1.2 * self.longest + MARGIN > self.deadline
        trainer.should_stop |= trainer.strategy.broadcast(late)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint.

    Raises
    ------
    InputError
        If it is damaged or not there.
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums
        if damaged is None:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # damaged bytes may raise anything
        damaged = repr(error)
    raise InputError(
        f"{path} is damaged ({damaged}): delete {path.parent}, and the training starts from the "
        "beginning"
    )


def epochs_so_far(state: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv of a training that left its checkpoints in a folder.

    Raises
    ------
    InputError
        If a checkpoint is damaged.
    """
    if not (state / "last.ckpt").exists():
        return []
    read_checkpoint(state / "best.ckpt")
    return list(read_checkpoint(state / "last.ckpt")["epochs"])


def fit(
    training: Training,
    batches: Dataset[Any],
    validation: Dataset[Any],
    hardware: Mapping[str, Any],
    environment: ClusterEnvironment,
    deadline: float | None,
) -> None:
    """Train to the last epoch, or the last before a deadline, going on from ``last.ckpt``.

    The folder of the state also gets ``best.ckpt``, the epoch of lowest validation loss, and logs
    for TensorBoard.

    Parameters
    ----------
    environment
        Tells this process from those that train with it.
    deadline
        When the job is killed, seconds since 1970, if that is known.
    """
    last = training.state / "last.ckpt"
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # advice on other products
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")
        warnings.filterwarnings("ignore", ".*`srun` command is available.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's own
        try:
            _trainer(training, hardware, environment, deadline).fit(
                training,
                loader(batches, EpochOfBatches(training), hardware["workers"]),
                loader(validation, None, 0),
                ckpt_path=last if last.exists() else None,
                weights_only=True,
            )
        except SIGTERMException:
            # Its exit status would be 0, as if the training had come to its end.
            sys.exit(128 + signal.SIGTERM)


def _trainer(
    training: Training,
    hardware: Mapping[str, Any],
    environment: ClusterEnvironment,
    deadline: float | None,
) -> Trainer:
    settings, folder = training.settings, training.state
    checkpoint = partial(
        ModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False
    )
    return Trainer(
        accelerator="gpu" if hardware["device"] == "cuda" else "cpu",
        devices=hardware["devices"],
        num_nodes=hardware["nodes"],
        strategy="ddp" if hardware["devices"] * hardware["nodes"] > 1 else "auto",
        precision=hardware["precision"],
        plugins=[environment],
        max_epochs=settings["epochs"],
        accumulate_grad_batches=settings["accumulate"],
        gradient_clip_val=training.gradient_clip,
        gradient_clip_algorithm=training.clip_by,
        deterministic="warn",
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[
            *([] if deadline is None else [Deadline(deadline)]),
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
