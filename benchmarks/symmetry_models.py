"""Patterns per second of the symmetry study's networks, predicting and training, and of data.

Patterns are random spots, as many as those of the embedded prototypes have: 61 in the mean. The
peer is the published PE-AG-GMoE on an RTX A4000, of which the paper gives one figure: 83 a second.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from diffractory.models.spot_lists import SpotListNetwork
from diffractory.store import CRYSTAL_SYSTEMS, Patterns, write_patterns
from diffractory.training.spot_networks import NETWORKS, predict
from diffractory.training.spots import Batch, SpotBatches, varied

SYMMETRY = yaml.safe_load((Path(__file__).parents[1] / "config" / "config.yaml").read_text())[
    "symmetry"
]
PUBLISHED = 83.0
"""Patterns a second, Nathani et al. (2026)."""


def random_patterns(count: int) -> Patterns:
    """Return patterns whose numbers of spots are distributed as those of the prototypes."""
    rng = np.random.default_rng(0)
    spots = np.clip(rng.lognormal(3.88, 0.73, count), 1, 500).astype(int)
    n = spots.sum()
    return Patterns(
        offsets=np.concatenate([[0], np.cumsum(spots)]),
        qx=rng.normal(0, 0.7, n).astype(np.float32),
        qy=rng.normal(0, 0.7, n).astype(np.float32),
        intensity=rng.uniform(1e-4, 0.1, n).astype(np.float32),
        hkl=np.zeros((n, 3), dtype=np.int16),
        material_id=np.full(count, "random", dtype=object),
        zone_axis=np.zeros((count, 3), dtype=np.int16),
        orientation=np.zeros((count, 3, 3)),
        thickness=np.full(count, 200, dtype=np.float32),
        energy=np.full(count, 2e5, dtype=np.float32),
    )


def batches_of(store: Path, count: int, size: int, shuffle: bool, in_memory: bool) -> SpotBatches:
    """Return batches of the first patterns of a store, with labels of no meaning."""
    kind = np.arange(count) % len(CRYSTAL_SYSTEMS)
    labels = pd.DataFrame({
        "pattern": np.arange(count), "crystal_system": np.array(CRYSTAL_SYSTEMS)[kind],
        "space_group": kind + 1,
    })  # fmt: skip
    return SpotBatches(store, labels, size, SYMMETRY["max_spots"], 0, shuffle, in_memory)


def rate(work: Callable[[], int]) -> float:
    """Return what is done per second, from the better of two turns."""
    best = 0.0
    for _ in range(2):
        start = time.perf_counter()
        done = work()
        best = max(best, done / (time.perf_counter() - start))
    return best


def data_rate(batches: SpotBatches) -> float:
    """Return patterns per second of a pass over the data alone."""
    batches[0]  # compile, and read what stays in memory
    return rate(lambda: sum(len(batches[k].spots) for k in range(len(batches))))


def training_rate(network: SpotListNetwork, some: list[Batch], settings: dict[str, Any]) -> float:
    """Return patterns per second of whole steps: forward, backward, optimizer."""
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.train().parameters(), settings["learning_rate"])
    some = [Batch(*(value.to(device) for value in batch)) for batch in some]

    def steps() -> int:
        done, half = 0, device.type == "cuda"
        for batch in some:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                output = network(*varied(batch.spots, batch.mask, settings))
                loss = network.loss(output, batch.crystal_system, batch.space_group)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            done += len(batch.spots)
        if half:
            torch.cuda.synchronize()
        return done

    return rate(steps)


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer patterns")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    threads = torch.get_num_threads()
    hardware = {
        "device": options.device,
        "precision": "bf16-mixed" if on_gpu else "32-true",
        "threads": threads,
    }
    count = 40_000 if options.quick else 400_000
    seen = (20_000 if on_gpu else 128) if options.quick else (100_000 if on_gpu else 2_000)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "patterns")
        write_patterns(store, [random_patterns(count)])
        data = {
            where: data_rate(batches_of(store, count, 64, True, where == "ram"))
            for where in ("ram", "disk")
        }
        rows = []
        for name, build in NETWORKS.items():
            settings = SYMMETRY[name]
            torch.manual_seed(0)
            network = build(**settings["network"]).to(options.device)
            size = 256 if on_gpu else settings["training"]["batch_size"]
            batches = batches_of(store, seen, size, True, True)
            some = [batches[k] for k in range(len(batches))]
            train = training_rate(network, some, settings["training"])
            batches = batches_of(store, seen, 64 if not on_gpu else size, False, True)
            work = partial(predict, network.eval(), batches, hardware)
            work()
            said = rate(lambda w=work: len(w()[0]))  # type: ignore[misc]
            rows.append((name, said, train))
    print(f"{options.device}, {threads} threads, data of {count:,} patterns")
    print(f"data alone: {data['ram']:,.0f} patterns/s from memory, {data['disk']:,.0f} from disk")
    print(f"{'network':12} {'prediction 1/s':>14} {'training 1/s':>12}")
    for name, said, train in rows:
        print(f"{name:12} {said:14,.0f} {train:12,.0f}")
    result: dict[str, float] = {}
    for name, said, train in rows:
        result[f"{name}_patterns_per_second"] = said
        result[f"{name}_training_patterns_per_second"] = train
    result["pe_ag_gmoe_ratio_vs_published"] = rows[0][1] / PUBLISHED
    result |= {f"data_patterns_per_second_{where}": value for where, value in data.items()}
    rounded = {key: float(f"{value:.4g}") for key, value in result.items()}
    print(json.dumps({**rounded, "threads": threads}))


if __name__ == "__main__":
    main()
