"""Rates of the 2D structure study: patterns, training, embeddings, queries and checks.

Patterns of layers are simulated on one core, beside the published way: Eq. 2 of R. Fu et al.,
Commun. Phys. 8, 221 (2025), as printed, a double sum over atoms at every reflection, in NumPy, of
the same layers with the same form factors. The stage reads them from a table and writes the store.

Networks have random weights and galleries random embeddings, which changes no time. They have the
sizes of config/config.yaml (demo) and config/paper.yaml (published). A query embeds one pattern of
350 points and finds the ten nearest of 100,000; the peer of the search sorts all scores by NumPy's
argsort. A check is the R-factor of a pattern and one candidate. The last line is JSON.

Where other programs use the same cores, OMP_WAIT_POLICY=passive keeps threads from blocking each
other while they wait; without it, a query may take ten times as long there.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from diffractory.evaluation.pattern_agreement import Spots, agreement
from diffractory.evaluation.ranking import search
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.layers import layer_patterns, simulate_layers
from diffractory.simulate.scattering import x_ray_factor
from diffractory.store import Patterns, one_thread, write_patterns
from diffractory.training.crystals import Layers, PairBatches, layers_of
from diffractory.training.retrieval_networks import (
    NETWORKS,
    RetrievalNetwork,
    embed_patterns,
    embed_structures,
)
from diffractory.training.retrieval_training import RetrievalTraining

DEMO, PAPER = (
    yaml.safe_load((Path(__file__).parents[1] / "config" / f"{scale}.yaml").read_text())[
        "structure_2d"
    ]
    for scale in ("config", "paper")
)
SETTINGS = DEMO["patterns"] | PAPER["patterns"]
LAYERS_OF_STUDY = 8_000
BLOCK = 500
GALLERY = 100_000
CANDIDATES = 10


class Pairs(NamedTuple):
    """Crystals and their patterns, in memory and as a store."""

    layers: Layers
    patterns: Patterns
    store: Path


def random_layers(count: int) -> dict[str, Crystal]:
    """Return layers of 2 to 12 atoms, at random places of oblique cells of the usual density."""
    rng = np.random.default_rng(0)
    layers = {}
    for number in range(count):
        atoms = int(rng.integers(2, 13))
        gamma, side = rng.uniform(np.pi / 3, 2 * np.pi / 3), np.sqrt(4.5 * atoms)
        cell = np.diag([side, side * np.sin(gamma), 20.0])
        cell[1, 0] = side * np.cos(gamma)
        layers[str(number)] = Crystal(cell, rng.random((atoms, 3)), rng.integers(1, 84, atoms))
    return layers


def double_sum(layer: Crystal, q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intensities at q, shape (S, 2), of Eqs. 1 and 2, summed over pairs of atoms."""
    length = np.hypot(*q.T)
    places = (layer.positions @ layer.cell)[:, :2]
    factors = [x_ray_factor(int(number), length) for number in layer.numbers]
    total = np.zeros(len(q))
    for i, own in enumerate(factors):
        for j, other in enumerate(factors):
            total += own * other * np.cos(2 * np.pi * q @ (places[i] - places[j]))
    theta = np.arcsin(SETTINGS["wavelength"] * length / 2)
    polarization = (1 + np.cos(2 * theta) ** 2) / 2
    debye_waller = np.exp(-SETTINGS["debye_waller"] * length**2 / 2)
    return debye_waller * polarization / np.sin(2 * theta) * total / len(places)


def published_pattern(layer: Crystal) -> NDArray[np.float64]:
    """Return the intensities of all reflections in the grid."""
    most = np.ceil(SETTINGS["q_max"] * np.abs(layer.cell[:2, :2]).sum(axis=1)).astype(int)
    hk = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), axis=-1)
    q = hk.reshape(-1, 2) @ layer.reciprocal[:2, :2]
    inside = (np.abs(q) <= SETTINGS["q_max"]).all(axis=1) & q.any(axis=1)
    return double_sum(layer, q[inside])


def our_patterns(layers: dict[str, Crystal]) -> Patterns:
    """Return the patterns of all layers, simulated in blocks as the stage does."""
    names, crystals = list(layers), list(layers.values())
    return Patterns.concatenate(
        [
            layer_patterns(names[i : i + BLOCK], crystals[i : i + BLOCK], SETTINGS)
            for i in range(0, len(names), BLOCK)
        ]
    )


def table_of(layers: dict[str, Crystal]) -> pd.DataFrame:
    """Return the columns of ``layers.parquet`` that are read here."""
    structures = [layer.to_json() for layer in layers.values()]
    return pd.DataFrame({"material_id": list(layers), "structure": structures})


def stage_seconds(layers: dict[str, Crystal]) -> float:
    """Return the time of the whole stage, reading and writing included."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table_of(layers).to_parquet(folder / "layers.parquet")
        outputs = folder / "store", folder / "rejected.parquet", folder / "run.json"
        start = time.perf_counter()
        simulate_layers(folder / "layers.parquet", *outputs, SETTINGS, seed=0)
        return time.perf_counter() - start


def pattern_rates(quick: bool) -> dict[str, float]:
    """Print the rates of the simulation and return them."""
    one_thread()
    layers = random_layers(500 if quick else LAYERS_OF_STUDY)
    compared = list(layers.values())[: 50 if quick else 400]
    our_patterns(dict(list(layers.items())[:2]))  # compile
    start = time.perf_counter()
    patterns = our_patterns(layers)
    ours = (time.perf_counter() - start) / len(layers)
    start = time.perf_counter()
    for layer in compared:
        published_pattern(layer)
    theirs = (time.perf_counter() - start) / len(compared)
    stage = stage_seconds(layers)
    difference = 0.0
    for number, layer in enumerate(compared):
        own = slice(*patterns.offsets[number : number + 2])
        expected = double_sum(layer, (patterns.hkl[own] @ layer.reciprocal)[:, :2])
        difference = max(difference, np.abs(patterns.intensity[own] / expected - 1).max())
    spots = patterns.offsets[-1] / len(patterns)
    print(f"simulation: {len(layers)} layers, {spots:.0f} spots each, one core")
    print(f"double sum over atoms {theirs * 1e3:8.3f} ms a pattern")
    print(f"sum over atoms        {ours * 1e3:8.3f} ms a pattern")
    print(f"stage, files included {stage / len(layers) * 1e3:8.3f} ms a pattern")
    return {
        "patterns_ratio_vs_double_sum": theirs / ours,
        "patterns_max_relative_difference": difference,
        "patterns_per_second": 1 / ours,
        "stage_seconds_for_8000": stage * LAYERS_OF_STUDY / len(layers),
    }


def make_pairs(folder: Path, count: int, max_points: int) -> Pairs:
    """Return random layers with patterns of at most so many points."""
    layers = random_layers(count)
    settings = SETTINGS | {"max_points": max_points}
    patterns = layer_patterns(list(layers), list(layers.values()), settings)
    store = folder / str(max_points)
    write_patterns(store, [patterns])
    return Pairs(layers_of(table_of(layers)), patterns, store)


def seconds(work: Callable[[], Any]) -> float:
    """Return the shorter time of two turns."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def training_rate(
    network: RetrievalNetwork, pairs: Pairs, settings: dict[str, Any], hardware: dict[str, Any]
) -> float:
    """Return pairs per second of whole steps: data, forward, backward, optimizer."""
    count, device = len(pairs.layers), torch.device(hardware["device"])
    table = pd.DataFrame({"layer": np.arange(count), "pattern": np.arange(count)})
    size = min(count, settings["batch_size"])
    batches = PairBatches(pairs.store, pairs.layers, table, size, network.q_max, 0, shuffle=True)
    training = RetrievalTraining(network, settings, len(batches), 0, pd.Series(), pairs.store)
    optimizer = torch.optim.AdamW(training.to(device).train().parameters())

    def step(k: int) -> float:
        batch = training.transfer_batch_to_device(batches[k], device, 0)
        half = hardware["precision"] == "bf16-mixed"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = training.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.parameters(), training.gradient_clip)
        optimizer.step()
        return loss.item()  # waits for the device

    return count / seconds(lambda: [step(k) for k in range(len(batches))])


def rates_of(
    network: RetrievalNetwork, pairs: Pairs, settings: dict[str, Any], hardware: dict[str, Any]
) -> tuple[float, float, float]:
    """Return pairs in training, crystals embedded and patterns embedded, per second."""
    training = training_rate(network, pairs, settings, hardware)
    network.eval()
    crystals = seconds(lambda: embed_structures(network, pairs.layers, hardware))
    patterns = seconds(lambda: embed_patterns(network, pairs.patterns, hardware))
    count = len(pairs.layers)
    return training, count / crystals, count / patterns


def query_seconds(
    network: RetrievalNetwork, patterns: Patterns, hardware: dict[str, Any]
) -> NDArray[np.float64]:
    """Return the time of each query, of its search alone, and of the peer's, shape (3, P)."""
    truth = np.zeros(1, dtype=np.int64)
    asked = [patterns.select(np.array([number])) for number in [0, 0, 0, *range(len(patterns))]]
    shape = GALLERY, embed_patterns(network, asked[0], hardware).shape[1]
    gallery = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    gallery = np.asfortranarray(gallery / np.linalg.norm(gallery, axis=1, keepdims=True))
    times, embeddings = [], []
    for one in asked:
        start = time.perf_counter()
        embeddings.append(embed_patterns(network, one, hardware))
        searching = time.perf_counter()
        search(embeddings[-1], gallery, truth, CANDIDATES)
        found = time.perf_counter()
        times.append((found - start, found - searching))
    # By itself, since idle threads of NumPy hold up those of the networks.
    peer = []
    for embedding in embeddings:
        start = time.perf_counter()
        np.argsort(-(embedding @ gallery.T)[0])[:CANDIDATES]
        peer.append(time.perf_counter() - start)
    return np.column_stack([times, peer])[3:].T


def query_rates(
    networks: dict[str, RetrievalNetwork], patterns: Patterns, hardware: dict[str, Any]
) -> dict[str, float]:
    """Print the times of queries and return them, in ms."""
    print(f"queries of a gallery of {GALLERY:,}, {len(patterns)} each, published size")
    columns = "median ms", "p99 ms", "least ms", "search ms", "argsort ms"
    print(" " * 20 + "".join(f"{column:>12}" for column in columns))
    result = {}
    for kind, network in networks.items():
        times = 1e3 * query_seconds(network, patterns, hardware)
        median, p99, least = np.percentile(times[0], [50, 99, 0])
        ours, peer = np.median(times[1:], axis=1)
        values = median, p99, least, ours, peer
        print(f"{kind:20}" + "".join(f"{value:12.2f}" for value in values))
        result[f"{kind}_query_ms_gallery_100k"] = median
        result[f"{kind}_query_ms_gallery_100k_p99"] = p99
        result[f"{kind}_query_ms_gallery_100k_least"] = least
        result[f"{kind}_search_ratio_vs_argsort"] = peer / ours
    # The slower network's.
    slower = max(result[f"{kind}_query_ms_gallery_100k"] for kind in networks)
    return result | {"query_ms_gallery_100k": slower}


def check_rates(pairs: Pairs, count: int) -> dict[str, float]:
    """Print checks per second and how often the truth is the best of ten layers; return both."""
    patterns = pairs.patterns
    q = patterns.qx.astype(np.float64) + 1j * patterns.qy.astype(np.float64)
    spots = Spots(patterns.offsets, q, np.sqrt(patterns.intensity.astype(np.float64)))
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, len(patterns))
    turned = spots._replace(q=q * np.exp(1j * angle).repeat(np.diff(patterns.offsets)))
    cells = np.ascontiguousarray(pairs.layers.cell[:, :2, :2])
    asked = np.arange(count).repeat(CANDIDATES)
    candidate = (asked + np.tile(np.arange(CANDIDATES), count)) % len(patterns)
    which = np.column_stack([asked, candidate])
    agreement(turned, spots, cells, which[:2], SETTINGS["q_max"])  # compile
    start = time.perf_counter()
    found = agreement(turned, spots, cells, which, SETTINGS["q_max"])
    rate = len(which) / (time.perf_counter() - start)
    best = (found.r_factor.reshape(count, CANDIDATES).argmin(axis=1) == 0).mean()
    print(f"checks by R-factor: {rate:,.0f} pairs/s, truth best of {CANDIDATES}: {best:.0%}")
    return {"checked_pairs_per_second": rate, "checks_with_truth_best": float(best)}


def network_rates(quick: bool, device: str) -> dict[str, float]:
    """Print the rates of networks, queries and checks and return them."""
    on_gpu, threads = device == "cuda", torch.get_num_threads()
    precision = "bf16-mixed" if on_gpu else "32-true"
    hardware = {"device": device, "precision": precision, "threads": threads}
    scales = {"demo": (DEMO, 128 if quick else 1_024), "published": (PAPER, 10 if quick else 256)}
    result, networks = {}, {}
    print(f"{torch.cuda.get_device_name() if on_gpu else 'cpu'}, {threads} threads")
    columns = "training pairs/s", "crystals embedded/s", "patterns embedded/s"
    print(" " * 20 + "".join(f"{column:>22}" for column in columns))
    with tempfile.TemporaryDirectory() as name:
        for scale, (config, count) in scales.items():
            max_points = config["patterns"]["max_points"]
            pairs = make_pairs(Path(name), count * (32 if on_gpu else 1), max_points)
            for kind, build in NETWORKS.items():
                torch.manual_seed(0)
                network = build(**DEMO[kind]["network"] | config[kind]["network"])
                settings = DEMO[kind]["training"] | config[kind]["training"]
                rates = rates_of(network, pairs, settings, hardware)
                print(f"{kind + ' ' + scale:20}" + "".join(f"{rate:22,.1f}" for rate in rates))
                units = "training_pairs", "crystals_embedded", "patterns_embedded"
                for unit, rate in zip(units, rates, strict=True):
                    result[f"{kind}_{scale}_{unit}_per_second"] = rate
                networks[kind] = network
        count = 4 if quick else 256
        result |= query_rates(networks, pairs.patterns.select(np.arange(count)), hardware)
        return result | check_rates(pairs, count)


def main() -> None:
    """Print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="take fewer layers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    result = network_rates(options.quick, options.device)
    result |= pattern_rates(options.quick)  # from here on one thread
    rounded = {key: float(f"{value:.4g}") for key, value in result.items()}
    print(json.dumps({**rounded, "device": options.device, "threads": threads}))


if __name__ == "__main__":
    main()
