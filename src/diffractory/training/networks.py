"""The stage behind the rule `train_network`, and what prediction shares with it."""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from diffractory.models.mvof_ml import MvofMl
from diffractory.models.ours import Ours
from diffractory.models.pe_ag_gmoe import PeAgGmoe
from diffractory.models.pooling import fit_pooling, log_probability
from diffractory.models.spot_lists import Opinions, SpotListNetwork
from diffractory.store import (
    CRYSTAL_SYSTEMS,
    InputError,
    SpotReader,
    atomic_folder,
    claimed,
    generator,
    recorded,
    track,
    write_text,
)
from diffractory.store.labels import labels_of_split
from diffractory.store.provenance import config_hash, verified
from diffractory.training.fit import (
    Training,
    check_device,
    ended,
    epochs_so_far,
    fit,
    loader,
    read_checkpoint,
)
from diffractory.training.launch import Job, launch
from diffractory.training.spots import SpotBatches

logger = logging.getLogger(__name__)

STARTED = time.time()
"""When this process began, but for `fit.MARGIN`, seconds since 1970."""

NETWORKS: dict[str, type[SpotListNetwork]] = {
    "pe_ag_gmoe": PeAgGmoe,
    "mvof_ml": MvofMl,
    "ours": Ours,
}

SAMPLE = 100
"""Batches that a network takes its normalization from."""

SPOTS_OF_EXAMPLE = 45
"""Spots of the pattern whose way through a network `architecture` follows."""


def train_network(
    name: str,
    patterns: Path,
    structures: Path,
    model: Path,
    settings: Mapping[str, Any],
    max_spots: int,
    hardware: Mapping[str, Any],
    seed: int,
    minutes: float | None = None,
) -> None:
    """Train one network and write the folder ``model``, whose name the record goes by.

    The state after every epoch is kept beside that folder, in ``{model}.training``: after a kill
    the training goes on from there, to the same bytes as if it had not been killed.

    Parameters
    ----------
    name
        A key of `NETWORKS`.
    patterns, structures
        Pattern store and ``structures.parquet``.
    model
        Folder to write: model.safetensors (the epoch of lowest validation loss), hparams.json,
        architecture.json, last.ckpt, metrics.csv, logs for TensorBoard and run.json.
    settings
        Configuration section ``symmetry.{name}``, or that of an ablation of this network.
    max_spots
        Most spots of a pattern that the network reads, the brightest.
    hardware
        Configuration section ``symmetry.hardware``. Its ``devices`` and ``nodes`` share each batch.
    minutes
        Time that the job of this process has, if it is limited. Before it is over the training
        stops after an epoch, and the process ends with the exit status 75.

    Raises
    ------
    InputError
        If there is nothing to train or to validate with, the device is not there, the loss is not
        finite, a checkpoint is damaged, or another process trains this model.
    """
    check_device(hardware)
    torch.set_num_threads(hardware["threads"])
    inputs = [patterns, structures]
    digests = list(verified(inputs).values())  # before they are read
    config = {name: dict(settings), "max_spots": max_spots, "hardware": dict(hardware)}
    stage, device = f"train_{model.name}", hardware["device"]
    with claimed(model):
        state = _state(model, {**config, "seed": seed, "inputs": digests})
        with (
            atomic_folder(model) as folder,
            recorded(folder / "run.json", stage, config, inputs, [folder], seed, device) as facts,
        ):
            deadline = None if minutes is None else STARTED + 60 * minutes
            paths = str(patterns), str(structures), str(state)
            job = Job(name, *paths, dict(settings), max_spots, dict(hardware), seed, deadline)
            epochs = _all_epochs(job)
            network = NETWORKS[name](**settings["network"]).eval()
            best = read_checkpoint(state / "best.ckpt")["state_dict"]
            network.load_state_dict({key.removeprefix("network."): best[key] for key in best})
            train, validation = _labels(patterns, structures)
            if network.pooling is not None:
                size = settings["training"]["batch_size"]
                everything = SpotBatches(patterns, validation, size, max_spots, seed, False, False)
                _fit_pooling(network, everything, validation, hardware, seed)
            network.cpu()
            (folder / "model.safetensors").write_bytes(save(network.state_dict()))
            for kept in (state / "last.ckpt", *state.glob("events.*")):
                shutil.copy(kept, folder)
            pd.DataFrame(epochs).to_csv(folder / "metrics.csv", index=False, float_format="%.6f")
            hparams = {
                "model": name,
                "network": network.hparams,
                "training": dict(settings["training"]),
                "loss": network.loss_name,
                "max_spots": max_spots,
            }
            _write_json(folder / "hparams.json", hparams)
            _write_json(folder / "architecture.json", architecture(network))
            facts["training_patterns"] = len(train)
            facts["training_materials"] = int(train["material_id"].nunique())
            facts["patterns_seen"] = epochs[-1]["patterns_seen"]
            facts["parameters"] = sum(p.numel() for p in network.parameters())
        shutil.rmtree(state.parent)


def _all_epochs(job: Job) -> list[dict[str, float]]:
    """Train to the end and return the rows of metrics.csv, or end this process if time is short."""
    how, state = job.settings["training"], Path(job.state)
    if not ended(epochs_so_far(state), how):
        if job.hardware["devices"] * job.hardware["nodes"] > 1:
            launch(job)
        else:
            # Not what a scheduler has set: it is for other purposes.
            train_epochs(job, LightningEnvironment())
    epochs = epochs_so_far(state)
    if not ended(epochs, how):
        logger.warning(
            "%d of at most %d epochs are done and the time of the job is nearly over: run again, "
            "and the training goes on from there",
            len(epochs), how["epochs"],
        )  # fmt: skip
        sys.exit(os.EX_TEMPFAIL)
    return epochs


def train_epochs(job: Job, environment: ClusterEnvironment) -> None:
    """Train a network, as one of the processes that share the work.

    Parameters
    ----------
    environment
        Tells this process from the others.

    Raises
    ------
    InputError
        As `train_network` does.
    """
    how, patterns = job.settings["training"], Path(job.patterns)
    train, validation = _labels(patterns, Path(job.structures))
    # Evenly over the materials, which follow each other in the store.
    held_out = validation[:: max(1, len(validation) // how["validation_patterns"])]
    in_memory = fits(patterns, job.hardware["data_memory"])
    batches, validation_batches = (
        SpotBatches(patterns, labels, how["batch_size"], job.max_spots, job.seed, shuffle, whole)
        for labels, shuffle, whole in ((train, True, in_memory), (held_out, False, True))
    )
    torch.manual_seed(int(generator(job.seed, job.name, "weights").integers(2**63)))
    network = NETWORKS[job.name](**job.settings["network"])
    _normalize(network, batches)
    steps = max(1, how["patterns_per_epoch"] // how["batch_size"])
    material_id = pd.concat([train, held_out]).set_index("pattern")["material_id"]
    training = Training(network, how, steps, job.seed, material_id, Path(job.state))
    who = environment.global_rank(), environment.world_size()
    shares = batches.shared(*who), validation_batches.shared(*who)
    fit(training, *shares, job.hardware, environment, job.deadline)


def _labels(patterns: Path, structures: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what `labels_of_split` does of the patterns to train and to validate with."""
    labels = labels_of_split(patterns, structures, "train", "validation")
    train, validation = (labels[labels["split"] == split] for split in ("train", "validation"))
    return train, validation


def fits(patterns: Path, memory: float) -> bool:
    """Return whether the spots of a store fit into so many GiB."""
    return bool(12 * SpotReader(patterns).offsets[-1] <= memory * 2**30)


def _state(model: Path, identity: Mapping[str, Any]) -> Path:
    """Return the folder of this very training, and remove those of others of this model."""
    states = model.with_name(f"{model.name}.training")
    state = states / config_hash(identity)
    for other in states.glob("*"):
        if other != state:
            shutil.rmtree(other)
    state.mkdir(parents=True, exist_ok=True)
    return state


def _normalize(network: SpotListNetwork, batches: SpotBatches) -> None:
    some = [batches[k] for k in range(min(SAMPLE, len(batches)))]
    # The step that sees a number that is not finite tells its material.
    masks = [b.mask & b.spots.isfinite().all(dim=-1) for b in some]
    most = max(batch.mask.shape[1] for batch in some)
    network.normalize_with(
        torch.cat([nn.functional.pad(b.spots, (0, 0, 0, most - b.spots.shape[1])) for b in some]),
        torch.cat([nn.functional.pad(mask, (0, most - mask.shape[1])) for mask in masks]),
    )


def _fit_pooling(
    network: SpotListNetwork,
    batches: SpotBatches,
    labels: pd.DataFrame,
    hardware: Mapping[str, Any],
    seed: int,
) -> None:
    """Fit the pooling to how often the network is right on patterns that it has not seen."""
    pattern, said = predict(network, batches, hardware)
    materials = labels.set_index("pattern").loc[pattern]
    order = np.argsort(materials["material_id"].to_numpy(), kind="stable")
    materials = materials.iloc[order]
    weight, power = fit_pooling(
        log_probability(said.crystal_system.numpy()[order]),
        pd.Index(CRYSTAL_SYSTEMS).get_indexer(pd.Index(materials["crystal_system"])),
        materials["material_id"].factorize()[0],
        generator(seed, "pooling", 0),
    )
    network.pooling = torch.tensor([weight, power])


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def architecture(network: nn.Module) -> list[dict[str, Any]]:
    """Return the modules of a network in the order in which they see a pattern of 45 spots.

    Each has its dotted ``name``, its ``kind`` (class), the shapes of its ``inputs`` and ``outputs``
    without the axis of the batch, its number of ``parameters``, and its ``parent``, which is the
    module that runs it (empty for the network itself).
    """
    blocks: dict[str, dict[str, Any]] = {}
    handles = []
    for name, module in network.named_modules():
        if not name:
            continue

        def before(module: nn.Module, inputs: Any, name: str = name) -> None:
            blocks[name] = {
                "name": name,
                "kind": type(module).__name__,
                "inputs": _shapes(inputs),
                "outputs": [],
                "parameters": sum(p.numel() for p in module.parameters()),
                "parent": _parent(name, blocks),
            }

        def after(module: nn.Module, inputs: Any, outputs: Any, name: str = name) -> None:
            blocks[name]["outputs"] = _shapes(outputs)

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    with torch.inference_mode():
        spots = torch.rand(1, SPOTS_OF_EXAMPLE, 3, generator=torch.Generator().manual_seed(0))
        network(spots, torch.ones(1, SPOTS_OF_EXAMPLE, dtype=torch.bool))
    for handle in handles:
        handle.remove()
    return list(blocks.values())


def _parent(name: str, blocks: Mapping[str, Any]) -> str:
    """Return the longest beginning of a dotted name that is a block; lists of modules are none."""
    while name := name.rpartition(".")[0]:
        if name in blocks:
            return name
    return ""


def _shapes(values: Any) -> list[list[int]]:
    """Return the shapes of the tensors among some values, without an axis of one pattern."""
    values = values if isinstance(values, tuple) else (values,)
    shapes = [list(value.shape) for value in values if isinstance(value, torch.Tensor)]
    return [shape[1:] if shape[:1] == [1] else shape for shape in shapes]


def load_network(model: Path) -> tuple[SpotListNetwork, int]:
    """Return the trained network of a folder, and how many spots of a pattern it reads.

    Raises
    ------
    InputError
        If the folder does not hold one.
    """
    try:
        hparams = json.loads((model / "hparams.json").read_text(encoding="utf-8"))
        network = NETWORKS[hparams["model"]](**hparams["network"])
        network.load_state_dict(load_file(model / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{model} does not hold a trained network: {error!r}") from error
    return network.eval(), hparams["max_spots"]


def predict(
    network: SpotListNetwork, batches: SpotBatches, hardware: Mapping[str, Any]
) -> tuple[np.ndarray[Any, Any], Opinions]:
    """Return the patterns of all batches by their index in the store, and opinions about them."""
    check_device(hardware)
    device = torch.device(hardware["device"])
    network = network.to(device)
    patterns, opinions = [], []
    half = hardware["precision"] == "bf16-mixed"
    some = track(loader(batches, None, 0), "Predicting", len(batches), "batches")
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        for batch in some:
            output = network(batch.spots.to(device), batch.mask.to(device))
            patterns.append(batch.pattern)
            opinions.append(network.opinions(output))
    parts = zip(*opinions, strict=True)
    joined = [None if part[0] is None else torch.cat(part).cpu() for part in parts]
    return torch.cat(patterns).numpy(), Opinions(*joined)  # type: ignore[arg-type]
