"""The stage behind the rule `train_generator`."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import Tensor

from diffractory.store import generator
from diffractory.training.crystal_generators import CrystalGenerator, build, check_crystals
from diffractory.training.fit import Training, fit
from diffractory.training.launch import Job
from diffractory.training.stage import follow, trained
from diffractory.training.unit_cells import CrystalBatch, CrystalBatches, read_crystals


class GenerationTraining(Training):
    """A network that generates crystals in training."""

    named = "crystals"
    gradient_clip = 0.5
    clip_by = "value"
    network: CrystalGenerator

    def loss(self, batch: CrystalBatch) -> Tensor:
        """Return the loss of a batch."""
        return self.network.loss(batch.cells)["loss"]

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam in one pass over the weights: its steps took as long as the network's."""
        how = self.settings
        return torch.optim.AdamW(
            self.network.parameters(),
            lr=how["learning_rate"],
            weight_decay=how["weight_decay"],
            fused=True,
        )

    def measures(self, batch: CrystalBatch) -> Iterator[tuple[str, Tensor]]:
        """Return the loss and its terms, with the same random draws in every epoch."""
        item = f"{batch.pattern[0]}/{self.global_rank}"
        draws = torch.Generator(self.device)
        draws.manual_seed(int(generator(self.seed, "validation", item).integers(2**63)))
        for name, value in self.network.loss(batch.cells, draws).items():
            yield "validation_loss" if name == "loss" else name, value * len(batch.counts)


def train_generator(
    name: str,
    crystals: Path,
    split: str,
    model: Path,
    settings: Mapping[str, Any],
    hardware: Mapping[str, Any],
    seed: int,
    minutes: float | None = None,
) -> None:
    """Train one network and write the folder ``model``, whose name the record goes by.

    Kills and limits of time are survived as `train_network` does.

    Parameters
    ----------
    name
        ``crystal_vae`` or ``ftcp``.
    crystals
        ``crystals.parquet``.
    split
        Column of the splits: ``split`` or ``disjoint_split``.
    model
        Folder to write: model.safetensors (the epoch of lowest validation loss), hparams.json,
        architecture.json, last.ckpt, metrics.csv, logs for TensorBoard and run.json.
    settings
        Sections ``network`` and ``training`` of the network.
    hardware
        Configuration section ``generation.hardware``. Its ``devices`` and ``nodes`` share each
        batch.
    minutes
        Time that the job of this process has, if it is limited. Before it is over the training
        stops after an epoch, and the process ends with the exit status 75.

    Raises
    ------
    InputError
        If there is nothing to train or to validate with, the network cannot take a crystal, the
        device is not there, the loss is not finite, a checkpoint is damaged, or another process
        trains this model.
    """
    data = {"crystals": str(crystals), "split": split}
    job = Job(__name__, "generation", name, data, dict(settings), dict(hardware), seed)
    config = {name: dict(settings), "split": split}
    with trained(model, job, config, [crystals], minutes) as result:
        network = build(name, settings["network"]).eval()
        network.load_state_dict(result.weights)
        hparams = {
            "model": name,
            "network": dict(settings["network"]),
            "training": dict(settings["training"]),
            "split": split,
        }
        train = read_crystals(crystals, split, "train")
        # The loss is what all parts take part in; its draws are in no file of the model.
        draws = torch.Generator().manual_seed(0)
        network.forward = partial(network.loss, generator=draws)  # type: ignore[method-assign]
        example: Any = train.cells(np.array([0]))
        result.write(network, hparams, follow(network, example))
        result.facts["training_crystals"] = len(train)
        result.facts["validation_crystals"] = len(read_crystals(crystals, split, "validation"))
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
        As `train_generator` does.
    """
    how, path = job.settings["training"], Path(job.data["crystals"])
    splits = [read_crystals(path, job.data["split"], split) for split in ("train", "validation")]
    for split in splits:
        check_crystals(split, job.settings["network"])
    torch.manual_seed(int(generator(job.seed, job.name, "weights").integers(2**63)))
    network = build(job.name, job.settings["network"])
    cells = splits[0].cells(np.arange(len(splits[0])))
    network.fit_scalers(cells.lattice, cells.counts)
    who = environment.global_rank(), environment.world_size()
    batches, validation = (
        CrystalBatches(split, how["batch_size"], job.seed, shuffle).shared(*who)
        for split, shuffle in zip(splits, (True, False), strict=True)
    )
    ids = pd.concat([pd.Series(split.material_id, split.row) for split in splits])
    training = GenerationTraining(network, how, len(batches), job.seed, ids, Path(job.state))
    fit(training, batches, validation, job.hardware, environment, job.deadline)
