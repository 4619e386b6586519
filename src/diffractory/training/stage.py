"""What the stages share that train a network: its state, its end, and the folder of the model."""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from safetensors.torch import save
from torch import Tensor, nn

from diffractory.store import atomic_folder, claimed, recorded, write_text
from diffractory.store.provenance import config_hash, verified
from diffractory.training.batches import check_device
from diffractory.training.fit import ended, epochs_so_far, read_checkpoint
from diffractory.training.launch import Job, launch

logger = logging.getLogger(__name__)

STARTED = time.time()
"""When this process began, but for `fit.MARGIN`, seconds since 1970."""


@dataclass(frozen=True)
class Trained:
    """A training that is at its end.

    Attributes
    ----------
    folder
        Of the model, not yet in its place.
    weights
        Of the epoch of lowest validation loss.
    facts
        For the record.
    """

    folder: Path
    weights: dict[str, Tensor]
    facts: dict[str, Any]

    def write(
        self, network: nn.Module, hparams: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write model.safetensors, hparams.json and, from what `follow` returns, the rest."""
        network.cpu()
        (self.folder / "model.safetensors").write_bytes(save(network.state_dict()))
        for name, content in (("hparams", hparams), ("architecture", blocks)):
            write_text(self.folder / f"{name}.json", json.dumps(content, indent=2) + "\n")


@contextmanager
def trained(
    model: Path,
    job: Job,
    config: Mapping[str, Any],
    inputs: Sequence[Path],
    minutes: float | None,
) -> Iterator[Trained]:
    """Train to the end, and let the block write the rest of the folder ``model``.

    The state after every epoch is kept beside that folder, in ``{model}.training``: after a kill
    the training goes on from there, to the same bytes as if it had not been killed.

    Parameters
    ----------
    job
        Without state and deadline.
    config
        For the record, but for the hardware.
    inputs
        Files and folders that are read.
    minutes
        Time that the job of this process has, if it is limited. Before it is over the training
        stops after an epoch, and the process ends with the exit status 75.

    Raises
    ------
    InputError
        If the device is not there, an input or a checkpoint is damaged, or another process trains
        this model.
    """
    check_device(job.hardware, job.study)
    torch.set_num_threads(job.hardware["threads"])
    digests = list(verified(inputs).values())  # before they are read
    config = {**config, "hardware": job.hardware}
    stage, device = f"train_{model.name}", job.hardware["device"]
    with claimed(model):
        state = _state(model, {**config, "seed": job.seed, "inputs": digests})
        with (
            atomic_folder(model) as folder,
            recorded(
                folder / "run.json", stage, config, inputs, [folder], job.seed, device
            ) as facts,
        ):
            deadline = None if minutes is None else STARTED + 60 * minutes
            epochs = _all_epochs(replace(job, state=str(state), deadline=deadline))
            best = read_checkpoint(state / "best.ckpt")["state_dict"]
            yield Trained(folder, {key.removeprefix("network."): best[key] for key in best}, facts)
            for kept in (state / "last.ckpt", *state.glob("events.*")):
                shutil.copy(kept, folder)
            pd.DataFrame(epochs).to_csv(folder / "metrics.csv", index=False, float_format="%.6f")
            facts["patterns_seen"] = epochs[-1]["patterns_seen"]
        shutil.rmtree(state.parent)


def _all_epochs(job: Job) -> list[dict[str, float]]:
    """Train to the end and return the rows of metrics.csv, or end this process if time is short."""
    how, state = job.settings["training"], Path(job.state)
    if not ended(epochs_so_far(state), how):
        if job.hardware["devices"] * job.hardware["nodes"] > 1:
            launch(job)
        else:
            # Not what a scheduler has set: it is for other purposes.
            import_module(job.module).train_epochs(job, LightningEnvironment())
    epochs = epochs_so_far(state)
    if not ended(epochs, how):
        logger.warning(
            "%d of at most %d epochs are done and the time of the job is nearly over: run again, "
            "and the training goes on from there",
            len(epochs), how["epochs"],
        )  # fmt: skip
        sys.exit(os.EX_TEMPFAIL)
    return epochs


def _state(model: Path, identity: Mapping[str, Any]) -> Path:
    """Return the folder of this very training, and remove those of others of this model."""
    states = model.with_name(f"{model.name}.training")
    state = states / config_hash(identity)
    for other in states.glob("*"):
        if other != state:
            shutil.rmtree(other)
    state.mkdir(parents=True, exist_ok=True)
    return state


def follow(network: nn.Module, *inputs: Tensor) -> list[dict[str, Any]]:
    """Return the modules of a network in the order in which they see inputs with one pattern.

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
        network(*inputs)
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
    shapes = [list(value.shape) for value in values if isinstance(value, Tensor)]
    return [shape[1:] if shape[:1] == [1] else shape for shape in shapes]
