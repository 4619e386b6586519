"""What the studies cost at their published scale, and at 100 times as many structures or images.

Jobs are those of a dry run of config/paper.yaml with the slurm profile. Rates are measured here, on
one core, or taken from the records of the desk run, per core that it used. Memory is that of stages
on a pattern store of the published size, each in a process of its own, and in proportion from
there. docs/scaling.md tells what is assumed and what follows. The last line is JSON.
"""

import argparse
import json
import logging
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save_file
from snakemake.utils import update_config

from diffractory.augment.compose import augment_crystal
from diffractory.augment.crystals import repeat
from diffractory.augment.images import Image, detect
from diffractory.augment.mote2 import orthogonal_cell
from diffractory.evaluation.predictions import evaluate_network, summarize_dataset
from diffractory.evaluation.symmetry_tables import make_table
from diffractory.models.c_vae import CVae
from diffractory.models.ours import Ours
from diffractory.models.random_forest import Descriptor, HierarchicalForest
from diffractory.models.wide_resnet import WideResNet
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.fourier import Grid, pixel_image
from diffractory.simulate.stage import simulate_material
from diffractory.store import LATTICE, Patterns, one_thread, write_patterns
from diffractory.store.images import IMAGES_PER_FILE
from diffractory.store.labels import labels_of_split
from diffractory.store.patterns import CHUNK, CHUNKS_PER_SHARD, PER_SPOT
from diffractory.store.provenance import sha256
from diffractory.structures.cleaning import clean_structures
from diffractory.structures.sources import retrieve_structures
from diffractory.structures.splits import split_structures
from diffractory.training.random_forest import describe_patterns
from diffractory.training.spots import SpotBatches

ROOT = Path(__file__).parents[1]
LOADS = (1, 100)
MATERIALS = 36_000
"""Experimentally observed structures of the Materials Project, Nathani et al. (2026), "Dataset"."""
VOLUME, SPREAD = 300.0, 0.8
"""Assumed: median of their primitive cells in cubic angstrom, standard deviation of its logarithm.
95 % are then smaller than 1,100 and hold fewer than about 70 atoms."""
GPU_HOURS = 480.0
"""Of eight A100, for the published training of PE-AG-GMoE."""
GPU_PREDICTIONS = 83.0
"""Patterns a second of the published PE-AG-GMoE on an RTX A4000."""
TABLE_SECONDS = 20.0
"""Assumed of a table, a figure or the report: table 4 takes so long, the others less."""
MOST_SHARDS = 1000
"""That the configuration's schema allows."""
CORES = 4
"""That a shard of the simulation asks for."""
READS = 15
"""Times that the whole store is read for its SHA-256: twice to join it and by each training of a
network, and once by the seven other jobs that read it."""
SHARD = CHUNK * CHUNKS_PER_SHARD
"""Rows of an array in one file of a store."""
SPOT, PATTERN = 18, 110
"""Bytes of a spot, and of a pattern beside its spots, in memory."""
NETWORK = 5e7
"""Bytes of a trained network with its last checkpoint, at most."""
STRUCTURE = 13e3
"""Bytes of memory that a structure takes in the stages that clean and split: of 16,800, once."""
PREDICTION = 60.0
"""Bytes of a prediction file per pattern, at most, without probabilities of all space groups."""
WORKER, IMPORTS = 0.1, 0.5
"""GiB of a process that simulates, and of what a stage imports."""
PHASE_SECONDS, FRAME_SECONDS = 5.0, 1.1
"""On one core, from records of the default scale: a phase with its phonons, and a frame of the
experiment with 16 frozen phonons."""
TREES = 10
"""Trees of a measured forest; cost and memory are proportional to their number."""
SMALL = 100.0
"""Cells above so many cubic angstrom set the cost, and are what its exponent is fitted to."""

CONFIG = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
update_config(CONFIG, yaml.safe_load((ROOT / "config" / "paper.yaml").read_text(encoding="utf-8")))
SIMULATE, SYMMETRY, SPLIT = (CONFIG[name] for name in ("simulate", "symmetry", "split"))
CONDITIONS = 1 + sum(len(v) for v in SYMMETRY["robustness"].values() if isinstance(v, list))
NETWORKS = ("pe_ag_gmoe", "mvof_ml", "ours")

UED = CONFIG["ued"]
SETS = ("classes", "latent")
UED_RULES = (
    "calculate_phonons", "simulate_images", "detect_images", "simulate_experiment",
    "train_image_network", "evaluate_image_network", "evaluate_experiment", "evaluate_c_vae",
    "summarize_images", "collect_examples", "tabulate_ued", "plot_ued",
)  # fmt: skip
"""Rules of the ultrafast-diffraction study."""
STRUCTURE_2D_RULES = (
    "prepare_layers", "relax_layers", "perturb_layers", "make_distractors", "simulate_layers",
    "train_retrieval_network", "evaluate_retrieval", "summarize_layers",
    "collect_retrieval_examples", "tabulate_structure_2d", "plot_structure_2d",
)  # fmt: skip
"""Rules of the 2D structure study, which also retrieves and cleans structures of its own."""
GENERATION_RULES = (
    "prepare_crystals", "train_generator", "sample_crystals", "trace_crystal",
    "fingerprint_crystals", "evaluate_reconstruction", "evaluate_generation", "relax_generated",
    "summarize_crystals", "tabulate_generation", "plot_generation",
)  # fmt: skip
"""Rules of the generation study, which does so for each of its data sets."""
SCAN_RULES = ("simulate_scan", "map_scan")
"""Rules of the scan of Figure 2, which is as large at every scale."""


def symmetry_jobs(jobs: Mapping[str, int]) -> Counter[str]:
    """Return the jobs of the symmetry study, but for its scan, and the report, of all jobs."""
    others = 1 + len(CONFIG["generation"]["datasets"])
    shared = dict.fromkeys(("retrieve_structures", "clean_structures"), others)
    return Counter(
        {
            rule: n - shared.get(rule, 0)
            for rule, n in jobs.items()
            if rule not in UED_RULES + STRUCTURE_2D_RULES + GENERATION_RULES + SCAN_RULES
        }
    )


class Cost(NamedTuple):
    """What a call returned, and its price."""

    result: Any
    seconds: float
    gib: float


class Row(NamedTuple):
    """A stage in the table; ``size`` in bytes. ``gpu_hours`` are None where they are not known."""

    stage: str
    jobs: int
    items: str
    rate: str
    core_hours: float
    gpu_hours: float | None
    size: float
    files: int


def rounded(value: float) -> str:
    """Return a number with two digits."""
    return f"{float(f'{value:.2g}'):,.10g}"


# --- jobs ---


class Plan(NamedTuple):
    """A dry run: jobs and memory asked for (MiB) by rule; its seconds and peak of memory."""

    jobs: Counter[str]
    memory: dict[str, int]
    seconds: float
    gib: float


def dry_run(shards: int, image_shards: int) -> Plan:
    """Plan config/paper.yaml with so many shards, in a copy of the workflow."""
    with tempfile.TemporaryDirectory() as name:
        for part in ("Snakefile", "workflow", "config", "profiles", "slurm", "envs"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, Path(name, part))
        load = f"simulate: {{shards: {shards}}}\nued: {{images: {{shards: {image_shards}}}}}\n"
        Path(name, "load.yaml").write_text(load, encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "-n", "--profile", "slurm"]
        command += ["--configfile", "config/paper.yaml", "load.yaml"]
        start, peak = time.perf_counter(), 0
        with Path(name, "out").open("w+") as out:
            process = psutil.Popen(command, cwd=name, stdout=out, stderr=subprocess.STDOUT)
            while process.poll() is None:
                try:
                    tree = [process, *process.children(recursive=True)]
                    peak = max(peak, sum(part.memory_info().rss for part in tree))
                except psutil.NoSuchProcess:
                    continue
                time.sleep(0.1)
            seconds = time.perf_counter() - start
            out.seek(0)
            said = out.read()
    if process.returncode:
        sys.exit(said)
    jobs = Counter(re.findall(r"^ *(?:local)?rule (\w+):$", said, re.MULTILINE))
    block = r"^ *rule (\w+):\n(?: .*\n)*? +resources: .*?mem_mb=(\d+)"
    memory = {rule: int(asked) for rule, asked in re.findall(block, said, re.MULTILINE)}
    return Plan(jobs, memory, seconds, peak / 2**30)


# --- rates and memory ---


def peak_gib() -> float:
    """Return the largest resident size of this process so far, and not of its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20  # type: ignore[index]


def priced(work: Callable[[], Any]) -> Cost:
    """Return what a call costs in a process of its own; its memory is beside that of imports."""
    context = get_context("forkserver")
    context.set_forkserver_preload([name for name in sys.modules if name.startswith("diffractory")])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_price, work).result()


def _price(work: Callable[[], Any]) -> Cost:
    logging.disable()
    torch.set_num_threads(2)
    numba.set_num_threads(2)
    before, start = peak_gib(), time.perf_counter()
    result = work()
    return Cost(result, time.perf_counter() - start, peak_gib() - before)


def make_structures(folder: Path, count: int) -> dict[str, float]:
    """Retrieve, clean and split prototypes; return core seconds and bytes of one."""
    files = [folder / f"{name}.parquet" for name in ("retrieved", "cleaned", "structures")]
    retrieved, cleaned, structures = files
    entry = {**CONFIG["datasets"]["prototypes"], "count": count}
    run = folder / "run.json"
    retrieve_structures(entry, "prototypes", folder, folder, retrieved, run, 0)
    start = time.perf_counter()
    rejected = folder / "rejected.parquet"
    clean_structures(retrieved, cleaned, rejected, run, CONFIG["structures"], 1.0, 0, 1)
    seconds = time.perf_counter() - start
    run.unlink()  # it is of cleaned.parquet, and not of what is made from it
    split_structures(cleaned, structures, folder / "structures.run.json", SPLIT, 0)
    table = pq.read_table(cleaned, columns=["structure", "laue_rotations"])
    size = sum(file.stat().st_size for file in files)
    return {
        "seconds": seconds / count,
        "size": size / count,
        "bytes_in_a_shard": table.nbytes / len(table),
    }


def simulate(folder: Path, count: int) -> list[Any]:
    """Write a store of some structures, and return the law of its patterns.

    Returns
    -------
    Core seconds and then spots of a pattern, each as the exponent of the cell's volume and the mean
    over the assumed cells; and the patterns and spots of the store.
    """
    one_thread()
    table = pd.read_parquet(folder / "cleaned.parquet")
    rows = table.iloc[np.linspace(0, len(table) - 1, count).astype(int)].to_dict("records")
    simulate_material(rows[0], SIMULATE, 0)  # compile
    made, found = [], []
    for row in rows:
        crystal = Crystal.from_json(row["structure"], 0.0)
        start = time.process_time()
        patterns, _ = simulate_material(row, SIMULATE, 0)
        seconds = time.process_time() - start
        if n := sum(map(len, patterns)):
            spots = sum(int(part.offsets[-1]) for part in patterns)
            found.append((crystal.volume / len(crystal.translations()), seconds / n, spots / n))
            made += patterns
    size = write_patterns(folder / "part", made)
    volume, *values = np.log(found).T
    large = volume > np.log(SMALL)
    laws: list[Any] = []
    for value in values:
        exponent, constant = np.polyfit(volume[large], value[large], 1)
        mean = np.exp(constant) * VOLUME**exponent * np.exp((exponent * SPREAD) ** 2 / 2)
        laws.append({"exponent": float(exponent), "mean": float(mean)})
    return [*laws, size]


def measure_forest(folder: Path) -> dict[str, float]:
    """Return what a forest takes per training pattern and tree, and per pattern to predict."""
    numba.set_num_threads(1)
    settings = SYMMETRY["random_forest"]
    names = ("radial_bins", "angular_orders", "intensity_power")
    descriptor = Descriptor(*(settings[name] for name in names), SIMULATE["g_max"])
    train = labels_of_split(folder / "part", folder / "structures.parquet", "train")
    describe = partial(describe_patterns, folder / "part", train["pattern"].to_numpy(), descriptor)
    describe()  # compile
    start = time.process_time()
    features = describe()
    described = time.process_time()
    model = HierarchicalForest.fit(
        descriptor,
        features,
        train["crystal_system"].to_numpy(dtype=str),
        train["space_group"].to_numpy(),
        train[list(LATTICE)].to_numpy(),
        n_estimators=TREES,
        min_samples_leaf=settings["min_samples_leaf"],
        seed=0,
        threads=1,
    )
    fitted = time.process_time()
    model.predict(features)
    predicted = time.process_time()
    n, scale = len(train), settings["n_estimators"] / TREES
    return {
        "patterns": n,
        "fit": (fitted - described) / n * scale,
        "predict": (described - start) / n + (predicted - fitted) / n * scale,
        "size": sum(array.nbytes for array in model.tensors().values()) / n * scale,
        "nodes": len(model.forests["crystal_system"].feature) / n * scale,
        "features": features.nbytes / n,
    }


def write_network(folder: Path) -> None:
    """Write an untrained network that predicts as a trained one does."""
    network = Ours(**SYMMETRY["ours"]["network"])
    hparams = {"model": "ours", "network": network.hparams, "max_spots": SYMMETRY["max_spots"]}
    folder.mkdir()
    (folder / "hparams.json").write_text(json.dumps(hparams), encoding="utf-8")
    save_file(network.state_dict(), folder / "model.safetensors")


def count_labels(store: Path, structures: Path) -> int:
    """Return the number of training patterns."""
    return len(labels_of_split(store, structures, "train"))


def first_batch(store: Path, structures: Path) -> None:
    """Read the training patterns into memory, as a training does and each of its workers."""
    labels = labels_of_split(store, structures, "train")
    SpotBatches(store, labels, 256, SYMMETRY["max_spots"], 0, shuffle=True, in_memory=True)[0]


def measure_stages(folder: Path, copies: int) -> dict[str, Cost]:
    """Return what stages cost on a store of so many copies of the part."""
    store, structures = folder / "store", folder / "structures.parquet"
    made = {"collect_patterns": priced(partial(write_patterns, store, [folder / "part"] * copies))}
    made["checksum"] = priced(partial(sha256, store))
    data = folder / "dataset.parquet"
    work = partial(summarize_dataset, store, structures, data, folder / "dataset.run.json", 0)
    made["summarize_dataset"] = priced(work)
    made["labels"] = priced(partial(count_labels, store, structures))
    made["train_network"] = priced(partial(first_batch, store, structures))
    write_network(folder / "ours")
    said = folder / "ours.parquet"
    hardware = {"threads": 2, "device": "cpu", "precision": "32-true"}
    arguments = (folder / "ours", store, structures, said, folder / "ours.run.json", hardware, 0)
    made["evaluate_network"] = priced(partial(evaluate_network, *arguments))
    context = {"scale": "paper", "dataset": "benchmark", "source": "prototypes", "seed": 0}
    context |= {"split_by": SPLIT["by"], "aggregate": SYMMETRY["aggregate"]}
    outputs = [folder / f"table.{end}" for end in ("csv", "md", "run.json")]
    work = partial(make_table, "4", data, {"ours": said}, context, *outputs)
    made["tabulate_symmetry"] = priced(work)
    return made


def desk_rate(name: str) -> float:
    """Return patterns per second and core, by a record of the desk run."""
    path = ROOT / "docs" / "results" / "symmetry_desk" / f"{name}.run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    facts = record["facts"]
    patterns = facts.get("patterns_seen") or facts["test_patterns"]
    return float(patterns / record["seconds"] / record["config"]["hardware"]["threads"])


# --- the tables ---


def files_of_store(patterns: float, spots: float) -> int:
    """Return how many files a pattern store is: its arrays, and what describes them."""
    rows = [spots if name in PER_SPOT else patterns for name in Patterns.__dataclass_fields__]
    return sum(math.ceil(n / SHARD) + 1 for n in rows) + 1


class Scale:
    """Numbers of items at so many times the published number of structures."""

    def __init__(self, load: int, spots: float) -> None:
        self.load = load
        self.materials = MATERIALS * load
        self.patterns = self.materials * SIMULATE["count"]
        self.test = self.patterns * SPLIT["test"]
        self.train = (self.patterns - self.test) * (1 - SPLIT["validation"])
        self.chosen = min(self.test, SYMMETRY["robustness"]["patterns"])
        self.perturbed = CONDITIONS * self.chosen
        self.said = self.test + self.perturbed
        # Other thicknesses are solved for all zone axes of a material with a chosen pattern.
        self.again = min(self.materials * SPLIT["test"], self.chosen) * SIMULATE["count"]
        self.spots = spots


def costs(at: Scale, jobs: Mapping[str, int], m: Mapping[str, Any]) -> list[Row]:
    """Return the stages with what they cost."""
    per_pattern = at.spots * m["bytes_per_spot"]
    solve, forest, shards = m["simulation"]["mean"], m["forest"], jobs["simulate_patterns"]
    fit = forest["fit"] * math.log(at.train) / math.log(forest["patterns"])

    def row(
        stage: str,
        rules: Sequence[str],
        n: float,
        unit: str,
        seconds: float,
        size: float,
        files: int,
    ) -> Row:
        rate = rounded(1 / seconds)
        count = sum(jobs[rule] for rule in rules)
        return Row(stage, count, f"{rounded(n)} {unit}", rate, n * seconds / 3600, 0, size, files)

    def stage(name: str, size: float, files: int) -> Row:
        seconds = m["stages"][name].seconds / m["patterns"]
        return row(name, [name], at.patterns, "patterns", seconds, size, files)

    structures = ("retrieve_structures", "clean_structures", "split_structures")
    predictions = ("evaluate_random_forest", "evaluate_perturbed_random_forest")
    shown = ("tabulate_symmetry", "plot_symmetry", "report")
    size = at.patterns * per_pattern
    in_shard = files_of_store(at.patterns / shards, at.patterns * at.spots / shards) + 2
    rows = [
        row("structures", structures, at.materials, "structures", m["structures"]["seconds"],
            at.materials * m["structures"]["size"], 7),
        row("simulate_patterns", ["simulate_patterns"], at.patterns, "patterns", solve,
            size, shards * in_shard),
        stage("collect_patterns", size, files_of_store(at.patterns, at.patterns * at.spots) + 3),
        stage("summarize_dataset", 0, 2),
        row("perturb_patterns", ["perturb_patterns"], at.again, "patterns", solve,
            at.perturbed * per_pattern, files_of_store(at.perturbed, at.perturbed * at.spots) + 2),
        row("checksums of the store", [], READS * size / 1e9, "GB", m["hash"] * 1e9, 0, 0),
        row("train_random_forest", ["train_random_forest"], at.train, "patterns", fit,
            at.train * forest["size"], 4),
        row("evaluate_random_forest", predictions, at.said, "patterns", forest["predict"],
            at.said * PREDICTION, 4),
    ]  # fmt: skip
    rows += network_costs(at, m["prediction"])
    files = 3 * jobs["tabulate_symmetry"] + 4 * jobs["plot_symmetry"] + 2
    pages = sum(jobs[rule] for rule in shown)
    seconds = TABLE_SECONDS * at.load
    rows.append(row("tables, figures, report", shown, pages, "pages", seconds, 1e7, files))
    return rows


def network_costs(at: Scale, prediction: float) -> list[Row]:
    """Return training and prediction of each network; ``prediction`` is in bytes, of our own."""
    rows = []
    for name in NETWORKS:
        how = SYMMETRY[name]["training"]
        seen = how["epochs"] * how["patterns_per_epoch"] * at.load
        size = at.said * (prediction if name == "ours" else PREDICTION)
        hours: tuple[float | None, float | None] = (None, None)
        if name == "pe_ag_gmoe":
            hours = GPU_HOURS * at.load, at.said / GPU_PREDICTIONS / 3600
        for what, jobs, n, gpu, written, files in (
            ("train", 1, seen, hours[0], NETWORK, 8),
            ("evaluate", 2, at.said, hours[1], size, 4),
        ):
            rate = desk_rate(f"{what}_{name}")
            count, speed = f"{rounded(n)} patterns", f"{rounded(rate)} (desk)"
            row = Row(f"{what} {name}", jobs, count, speed, n / rate / 3600, gpu, written, files)
            rows.append(row)
    return rows


def measure_images(turns: int) -> dict[str, float]:
    """Return seconds on one core of an image of each step of its way, with the paper's settings.

    Networks are timed in so many turns.
    """
    one_thread()
    torch.set_num_threads(1)
    images, steps = UED["images"], UED["detector"]["steps"]
    grid = Grid(images["q_max"], images["q_step"])
    cell = repeat(orthogonal_cell("2h"), (*images["cells"], 1))
    crystals = [
        augment_crystal(cell, [{"vacancies": {"fraction": 0.1}}, *images["every"]], 0, k)[0]
        for k in range(4)
    ]
    how = (grid, images["oversampling"], images["parametrization"])
    clean = [pixel_image(crystal, *how) for crystal in crystals]
    seen = [detect(Image(pixels, grid.step), steps, 0, str(k))[0] for k, pixels in enumerate(clean)]
    side = seen[0].pixels.shape
    frames, kinds = torch.rand(2, *side), torch.zeros(2, dtype=torch.int64)
    seconds = {
        "simulate": mean_seconds(lambda: pixel_image(crystals[0], *how)),
        "detect": mean_seconds(lambda: detect(Image(clean[0], grid.step), steps, 0, "0")),
        "pixels": float(np.prod(side)),
    }
    for name, network in (
        ("cnn", WideResNet(side, len(images["classes"]), **UED["cnn_syn"]["network"])),
        ("c_vae", CVae(**UED["c_vae"]["network"])),
    ):
        train = partial(lambda n: n.loss(frames, kinds).backward(), network)
        seconds[f"train_{name}"] = mean_seconds(train, turns) / len(frames)
        with torch.inference_mode():
            predict = partial(lambda n: n.eval()(frames), network)
            seconds[f"predict_{name}"] = mean_seconds(predict, turns) / len(frames)
    return seconds


def mean_seconds(work: Callable[[], Any], turns: int = 3) -> float:
    """Return the mean time of some calls, the first of several left out."""
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.mean(times[1:] or times))


def image_costs(load: int, jobs: Mapping[str, int], m: Mapping[str, float]) -> list[Row]:
    """Return the stages of the ultrafast-diffraction study with what they cost."""
    counts = {
        name: {split: n * len(UED["images"][name]) * load for split, n in splits.items()}
        for name, splits in UED["images"]["counts"].items()
    }
    n_images = sum(sum(counts[name].values()) for name in SETS)
    frames = 2 * UED["experiment"]["stand_in"]["frames"]

    def row(
        stage: str,
        n_jobs: int,
        n: float,
        seconds: float,
        gpu: float | None,
        size: float,
        files: int,
    ) -> Row:
        count = f"{rounded(n)} images"
        return Row(stage, n_jobs, count, rounded(1 / seconds), n * seconds / 3600, gpu, size, files)

    files = 2 * math.ceil(n_images / 2 / IMAGES_PER_FILE)
    pixels, shown = (
        m["pixels"],
        ("tabulate_ued", "plot_ued", "summarize_images", "collect_examples"),
    )
    pages = sum(jobs[rule] for rule in shown)
    test = {name: counts[name]["test"] for name in SETS}
    evaluated = test["classes"] + 2 * frames
    rows = [
        row("calculate_phonons", jobs["calculate_phonons"], 2, PHASE_SECONDS, 0, 1e6, 4),
        row("simulate_images", jobs["simulate_images"], n_images, m["simulate"], 0,
            4 * pixels * n_images, files + 6),
        row("detect_images", jobs["detect_images"], n_images, m["detect"], 0,
            2 * pixels * n_images, files + 6),
        row("simulate_experiment", 1, frames, FRAME_SECONDS, 0, 2 * pixels * frames, 5),
    ]  # fmt: skip
    for name, trained, network in (
        ("cnn_syn", counts["classes"]["train"], "cnn"),
        ("cnn_exp", frames // 2, "cnn"),
        ("c_vae", counts["latent"]["train"], "c_vae"),
    ):
        seen = trained * UED[name]["training"]["epochs"]
        rows.append(row(f"train {name}", 1, seen, m[f"train_{network}"], None, NETWORK, 8))
    for name, jobs_of, n in (("cnn", 3, evaluated), ("c_vae", 1, test["latent"])):
        rows.append(
            row(f"evaluate {name}", jobs_of, n, m[f"predict_{name}"], None, 1e7, 2 * jobs_of)
        )
    rows.append(row("tables, figures", pages, pages, TABLE_SECONDS / 4, 0, 1e7, 4 * pages))
    return rows


def total(rows: Sequence[Row], jobs: int) -> Row:
    """Return the sum, without the core hours of what has GPU hours."""
    return Row(
        "total", jobs, "", "", sum(row.core_hours for row in rows if not row.gpu_hours),
        sum(row.gpu_hours or 0 for row in rows), sum(row.size for row in rows),
        sum(row.files for row in rows),
    )  # fmt: skip


def print_costs(rows: Sequence[Row], whole: Row) -> None:
    """Print the stages and their sum as a Markdown table."""
    print("| stage | jobs | items | a second and core | core hours | GPU hours | GB | files |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in (*rows, whole):
        core_hours = rounded(row.core_hours)
        if row.gpu_hours and row is not whole:
            core_hours = f"({core_hours})"
        gpu_hours = "not measured" if row.gpu_hours is None else rounded(row.gpu_hours)
        print(
            f"| {row.stage} | {row.jobs:,} | {row.items} | {row.rate} | {core_hours} | {gpu_hours} "
            f"| {rounded(row.size / 1e9)} | {row.files:,} |"
        )


def memory(at: Scale, shards: int, m: Mapping[str, Any]) -> dict[str, float]:
    """Return what the largest jobs need, GiB."""
    grown = {name: at.patterns * cost.gib / m["patterns"] for name, cost in m["stages"].items()}
    hardware, forest, structures = SYMMETRY["hardware"], m["forest"], STRUCTURE * at.materials
    features, model = forest["features"], forest["size"] * at.train
    # Each worker of a training keeps the spots that fit into data_memory.
    held = (grown["train_network"] - grown["labels"]) * at.spots / m["spots_measured"]
    fits = 12 * at.patterns * at.spots <= hardware["data_memory"] * 2**30
    shard = at.patterns / shards * (at.spots * SPOT + PATTERN)
    table = m["structures"]["bytes_in_a_shard"] * at.materials
    # Whole files of each array wait to be written, the last of them beside the next.
    waiting = min(1, 2 * SHARD / at.patterns)
    return {
        "clean_structures": structures / 2**30,
        "split_structures": structures / 2**30,
        "simulate_patterns": CORES * WORKER + (shard + table) / 2**30,
        "collect_patterns": waiting * grown["collect_patterns"],
        "summarize_dataset": grown["summarize_dataset"],
        "train_random_forest": (at.train * features + 2 * model) / 2**30,
        "evaluate_random_forest": (2 * at.test * features + model) / 2**30,
        "train_network": grown["labels"] + fits * (1 + hardware["workers"]) * held,
        "evaluate_network": grown["evaluate_network"],
        "tabulate_symmetry": grown["tabulate_symmetry"],
    }


def print_memory(
    needs: Sequence[Mapping[str, float]], asked: Mapping[str, int], patterns: int
) -> None:
    """Print what jobs need at each load, GiB, beside what their rules ask for, MiB."""
    print(f"\nMemory, GiB, of {rounded(patterns)} patterns, and in proportion from there\n")
    print("| rule | asked for at first | published scale | 100 times |\n|---|---:|---:|---:|")
    for rule in needs[0]:
        gib = (asked[rule] / 1024, *(need[rule] + IMPORTS for need in needs))
        print(f"| {rule} | {' | '.join(map(rounded, gib))} |")


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    """Return all that was measured."""
    structures = priced(partial(make_structures, folder, 50 if quick else 800)).result
    simulation, spots, part = priced(partial(simulate, folder, 30 if quick else 300)).result
    forest = priced(partial(measure_forest, folder)).result
    copies = math.ceil(MATERIALS * SIMULATE["count"] * (0.01 if quick else 1) / part[0])
    made = measure_stages(folder, copies)
    files = (folder / "store").rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    said = folder / "ours.parquet"
    return {
        "structures": structures,
        "simulation": simulation,
        "spots": spots,
        "forest": forest,
        "stages": made,
        "patterns": copies * part[0],
        "spots_measured": part[1] / part[0],
        "bytes_per_spot": size / (copies * part[1]),
        "hash": made["checksum"].seconds / size,
        "prediction": said.stat().st_size / pq.read_metadata(said).num_rows,
    }


def main() -> None:
    """Print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer structures; no memory, no 100 times",
    )
    quick = parser.parse_args().quick
    logging.disable()
    loads = LOADS[:1] if quick else LOADS
    plans = [
        dry_run(
            *(min(n * load, MOST_SHARDS) for n in (SIMULATE["shards"], UED["images"]["shards"]))
        )
        for load in loads
    ]
    alone = ProcessPoolExecutor(1, get_context("spawn"))
    image_seconds = alone.submit(measure_images, 1 if quick else 3).result()
    with tempfile.TemporaryDirectory() as name:
        m = measure(Path(name), quick)
    solve, spots = m["simulation"], m["spots"]
    result = {"patterns": m["patterns"], "cost_exponent": round(solve["exponent"], 2)}
    needs: list[dict[str, float]] = []
    for load, plan in zip(loads, plans, strict=True):
        at, shards = Scale(load, spots["mean"]), plan.jobs["simulate_patterns"]
        jobs = symmetry_jobs(plan.jobs)
        rows = costs(at, jobs, m)
        of_images = image_costs(load, plan.jobs, image_seconds)
        image_jobs = sum(plan.jobs[rule] for rule in UED_RULES)
        whole = total(rows, jobs.total())
        each = at.patterns * solve["mean"] / shards / CORES
        print(
            f"\n{plan.jobs.total():,} jobs in all, planned in {plan.seconds:.1f} s and "
            f"{plan.gib:.2f} GiB\n\n{load} times {MATERIALS:,} structures: {whole.jobs:,} jobs; "
            f"{shards} shards of {rounded(each)} s on {CORES} cores\n"
        )
        print_costs(rows, whole)
        print(f"\nThe images of the ultrafast-diffraction study, {load} times\n")
        print_costs(of_images, total(of_images, image_jobs))
        needs.append(memory(at, shards, m))
        planned = {"dry_run_seconds": plan.seconds, "dry_run_gib": plan.gib, "shard_seconds": each}
        sums = {name: getattr(whole, name) for name in ("core_hours", "gpu_hours", "size")}
        values = {name: float(f"{value:.3g}") for name, value in (planned | sums).items()}
        counts = {"jobs": whole.jobs, "files": whole.files}
        result |= {f"{name}_at_{load}": value for name, value in (counts | values).items()}
    if not quick:  # small stores tell nothing of memory
        print_memory(needs, plans[0].memory, m["patterns"])
    nodes = m["forest"]["nodes"] * Scale(LOADS[1], 0).train
    print(
        f"\nA pattern costs as the cell's volume to the {solve['exponent']:.2f}, and has as many\n"
        f"spots as to the {spots['exponent']:.2f}: {rounded(spots['mean'])} in the mean.\n"
        f"The largest forest has {rounded(nodes)} nodes at {LOADS[1]} times."
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
