"""The stages in which trained networks make crystals."""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from diffractory.models.crystal_vae import CrystalVae
from diffractory.models.diffusion import Ddpm, Flow
from diffractory.models.periodic_graph import UnitCells
from diffractory.store import InputError, atomic_file, generator, recorded, track
from diffractory.training.batches import check_device
from diffractory.training.crystal_generators import (
    CrystalGenerator,
    check_crystals,
    load_generator,
)
from diffractory.training.unit_cells import CrystalArrays, list_columns, read_crystals


def sample_crystals(
    model: Path,
    crystals: Path,
    samples: Path,
    run: Path,
    settings: Mapping[str, Any],
    hardware: Mapping[str, Any],
    seed: int,
) -> None:
    """Write one row per crystal that a network makes, after a test crystal or from noise alone.

    Columns are ``task`` (``reconstruction`` or ``generation``), ``sampler`` (empty for the
    network's own), ``item`` (from 0 in each task and sampler), ``material_id`` (of the test
    crystal, or empty), ``lattice`` (lattice vectors, angstrom, 9 numbers), ``positions``
    (fractional), ``numbers`` (atomic numbers) and ``steps`` (evaluations of the network). What is
    not finite is kept.

    Test crystals are of the splits that the network was trained with, in an order that depends on
    the seed alone: all networks reconstruct the same ones.

    Parameters
    ----------
    model
        Folder that `train_generator` wrote.
    crystals
        ``crystals.parquet`` that it was trained with.
    samples, run
        Files to write: the table and its record.
    settings
        ``reconstructed``, how many test crystals (all, if there are fewer); ``generated``, how many
        crystals from noise; ``batch_size``; and ``samplers`` that reconstruct beside the network's
        own, from the same latent vectors: ``eq_6``, with this equation in place of Eq. 7, and
        ``steps_20`` and the like, with so many steps.
    hardware
        Configuration section ``generation.hardware``; all is computed in 32 bits.
    seed
        Global seed. Each batch has a generator of its own.

    Raises
    ------
    InputError
        If there is no test crystal, the model cannot be read, cannot take a crystal or has no such
        sampler, or the device is not there.
    """
    inputs = _inputs(model, crystals)
    config = {**settings, "hardware": dict(hardware)}
    stage, device = "sample_crystals", hardware["device"]
    with recorded(run, stage, config, inputs, [samples], seed, device) as facts:
        network, test, order = _prepared(model, crystals, hardware, seed)
        samplers = {name: _keywords(model, network, name) for name in ("", *settings["samplers"])}
        n_test, n_new = min(settings["reconstructed"], len(test)), settings["generated"]
        plan = [("reconstruction", name, n_test) for name in samplers] + [("generation", "", n_new)]
        tables = []
        for task, sampler, count in filter(itemgetter(2), plan):
            how = samplers[sampler]
            chosen = order[:count] if task == "reconstruction" else None
            made = _made(network, test, chosen, count, how, settings["batch_size"], seed)
            columns = {
                "task": [task] * count,
                "sampler": [sampler] * count,
                "item": np.arange(count),
                "material_id": [""] * count if chosen is None else test.material_id[chosen],
                **list_columns(made),
                "steps": np.full(count, how.get("steps", _steps(network))),
            }
            tables.append(pa.table(columns))
            facts[f"{task} {sampler}".rstrip()] = count
        _write(samples, pa.concat_tables(tables))


def trace_crystal(
    model: Path,
    crystals: Path,
    trajectory: Path,
    run: Path,
    hardware: Mapping[str, Any],
    seed: int,
) -> None:
    """Write the states of one crystal from noise to the end: the first that is reconstructed.

    Columns are ``step`` (steps that are left), ``time`` (1 .. 0), ``lattice``, ``positions`` and
    ``numbers`` as `sample_crystals` writes them, ``unwrapped`` (fractional coordinates before they
    were brought into the cell), ``material_id`` and ``generator`` (name of the model's folder).

    Raises
    ------
    InputError
        As `sample_crystals`, or if the network makes crystals at once.
    """
    inputs = _inputs(model, crystals)
    stage, device, config = "trace_crystal", hardware["device"], {"hardware": dict(hardware)}
    with recorded(run, stage, config, inputs, [trajectory], seed, device):
        network, test, order = _prepared(model, crystals, hardware, seed)
        if not isinstance(network, CrystalVae):
            raise InputError(f"{model} makes crystals at once: take a network with steps")
        draws = _draws(network, seed, "trajectory")
        cells = _on_device(test.cells(order[:1]), network)
        with torch.inference_mode():
            states = list(network.trace(network.latent(cells, draws), generator=draws))
        wrapped = list_columns(_joined([state.cells for state in states]))
        moved = [state.cells._replace(fractional=state.unwrapped) for state in states]
        columns = {
            "step": [state.step for state in states],
            "time": [state.time for state in states],
            **wrapped,
            "unwrapped": list_columns(_joined(moved))["positions"],
            "material_id": [test.material_id[order[0]]] * len(states),
            "generator": [model.name] * len(states),
        }
        _write(trajectory, pa.table(columns))


def _inputs(model: Path, crystals: Path) -> list[Path]:
    return [model / "model.safetensors", model / "hparams.json", crystals]


def _prepared(
    model: Path, crystals: Path, hardware: Mapping[str, Any], seed: int
) -> tuple[CrystalGenerator, CrystalArrays, NDArray[np.int64]]:
    """Return a trained network on its device, and test crystals with the order of the seed."""
    check_device(hardware, "generation")
    torch.set_num_threads(hardware["threads"])
    network, hparams = load_generator(model)
    test = read_crystals(crystals, hparams["split"], "test")
    check_crystals(test, hparams["network"])
    order = generator(seed, "sample_crystals", "test").permutation(len(test))
    return network.to(hardware["device"]), test, order


def _keywords(model: Path, network: CrystalGenerator, sampler: str) -> dict[str, Any]:
    """Return what a network is to be told to use a sampler."""
    if not sampler:
        return {}
    kind, _, steps = sampler.partition("_")
    if isinstance(network, CrystalVae):
        process = network.process
        if sampler == "eq_6" and isinstance(process, Ddpm):
            return {"eq_6": True}
        most = math.inf if isinstance(process, Flow) else process.steps
        if kind == "steps" and steps.isdecimal() and 1 <= int(steps) <= most:
            return {"steps": int(steps)}
    raise InputError(
        f"{model} has no sampler {sampler}: take it out of generation.sampling.variants for this "
        "network, or take fewer steps than it was trained with"
    )


def _steps(network: CrystalGenerator) -> int:
    return network.process.steps if isinstance(network, CrystalVae) else 1


def _made(
    network: CrystalGenerator,
    test: CrystalArrays,
    chosen: NDArray[np.int64] | None,
    count: int,
    how: Mapping[str, Any],
    batch_size: int,
    seed: int,
) -> UnitCells:
    """Return so many crystals that a network makes, after those chosen of the test or new ones."""
    label = "Generating" if chosen is None else "Reconstructing"
    batches = np.split(np.arange(count), range(batch_size, count, batch_size))
    made = []
    with torch.inference_mode():
        for k, batch in enumerate(track(batches, label, count, "crystals", batch_size)):
            if chosen is None:
                draws = _draws(network, seed, f"generation/{k}")
                found = network.generate(len(batch), generator=draws, **how)
            else:
                draws = _draws(network, seed, f"reconstruction/{k}")
                cells = _on_device(test.cells(chosen[batch]), network)
                found = network.reconstruct(cells, generator=draws, **how)
            made.append(UnitCells(*(part.cpu() for part in found)))
    return _joined(made)


def _draws(network: CrystalGenerator, seed: int, item: str) -> torch.Generator:
    """Return a random generator on the device of a network."""
    draws = torch.Generator(next(network.parameters()).device)
    return draws.manual_seed(int(generator(seed, "sample_crystals", item).integers(2**63)))


def _on_device(cells: UnitCells, network: CrystalGenerator) -> UnitCells:
    device = next(network.parameters()).device
    return UnitCells(*(part.to(device) for part in cells))


def _joined(cells: Sequence[UnitCells]) -> UnitCells:
    return UnitCells(*(torch.cat(parts) for parts in zip(*cells, strict=True)))


def _write(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")
