"""Structures per second of the cleaning stage, beside plain pymatgen in one process.

With DIFFRACTORY_DATA set the structures are those of carbon_24, otherwise pymatgen's AFLOW
prototypes in a few strained copies. The peer reads, labels and groups a subsample with
``Structure.from_str``, ``SpacegroupAnalyzer`` and ``StructureMatcher.group_structures``.
"""

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from diffractory.store import worker_pool
from diffractory.structures.cleaning import Labelled, clean_structures, label_structure, quiet
from diffractory.structures.duplicates import duplicate_groups

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "config" / "config.yaml").read_text())
SETTINGS = CONFIG["structures"]


def cif_texts(copies: int) -> tuple[str, list[str]]:
    """Return the name of the data set and its CIF texts, of prototypes in so many copies."""
    if folder := os.environ.get("DIFFRACTORY_DATA"):
        files = [Path(folder) / "carbon_24" / f"{name}.csv" for name in ("val", "test")]
        return "carbon_24", pd.concat(map(pd.read_csv, files))["cif"].tolist()
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY  # workers need not import it

    rng = np.random.default_rng(0)
    texts = []
    for _ in range(copies):
        for entry in AFLOW_PROTOTYPE_LIBRARY:
            structure = entry["snl"].structure.copy()
            structure.scale_lattice(structure.volume * rng.uniform(0.9, 1.1))
            texts.append(structure.to(fmt="cif"))
    return "prototypes", texts


def stage(texts: list[str], processes: int) -> float:
    """Return the seconds that the whole stage takes."""
    table = pd.DataFrame({"content": [text.encode() for text in texts]})
    table = table.assign(material_id=table.index.astype(str), source="benchmark", format="cif")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table.to_parquet(folder / "retrieved.parquet")
        outputs = [folder / file for file in ("s.parquet", "r.parquet", "run.json")]
        start = time.perf_counter()
        clean_structures(folder / "retrieved.parquet", *outputs, SETTINGS, 1.0, 0, processes)
        return time.perf_counter() - start


def parts(texts: list[str], processes: int) -> tuple[float, float]:
    """Return the seconds for reading and labels, and for duplicates, once the pool is up."""
    with worker_pool(processes, label_structure.__module__, quiet, "") as pool:
        list(pool.map(time.sleep, [0.1] * processes))
        start = time.perf_counter()
        contents = [text.encode() for text in texts]
        work = partial(label_structure, SETTINGS, "cif")
        outcomes = [o for o in pool.map(work, contents, chunksize=16) if isinstance(o, Labelled)]
        middle = time.perf_counter()
        ids = [str(index) for index in range(len(outcomes))]
        cells = [outcome.primitive for outcome in outcomes]
        duplicate_groups(ids, cells, SETTINGS["duplicates"], pool, processes)
        return middle - start, time.perf_counter() - middle


def peer(texts: list[str]) -> float:
    """Return the seconds that plain pymatgen takes in one process."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    start = time.perf_counter()
    groups: dict[Any, list[Structure]] = defaultdict(list)
    for text in texts:
        structure = Structure.from_str(text, fmt="cif")
        analyzer = SpacegroupAnalyzer(structure, symprec=SETTINGS["symprec"])
        primitive = analyzer.find_primitive()
        number = analyzer.get_space_group_number()
        groups[structure.reduced_formula, number, len(primitive)].append(primitive)
    matcher = StructureMatcher(**SETTINGS["duplicates"])
    for group in groups.values():
        matcher.group_structures(group)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer structures")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    os.environ["SPGLIB_WARNING"] = "OFF"

    name, texts = cif_texts(1 if arguments.quick else 4)
    if arguments.quick:
        texts = texts[:300]
    sample = texts[: 60 if arguments.quick else 800]
    stage(texts[:10], arguments.processes)  # compiles once per installation
    seconds = {
        "stage": stage(texts, arguments.processes),
        **dict(zip(("labels", "duplicates"), parts(texts, arguments.processes), strict=True)),
        "sample": stage(sample, arguments.processes),
        "sample_one_process": stage(sample, 1),
        "sample_pymatgen": peer(sample),
    }
    print(f"{name}, {arguments.processes} processes\n{'':20}structures  seconds  structures/s")
    for part, value in seconds.items():
        count = len(sample if part.startswith("sample") else texts)
        print(f"{part:20}{count:10}{value:9.2f}{count / value:14.0f}")
    result = {
        "benchmark": "structures",
        "dataset": name,
        "processes": arguments.processes,
        "structures": len(texts),
        "sample": len(sample),
        "seconds": {part: round(value, 3) for part, value in seconds.items()},
        "structures_per_second": round(len(texts) / seconds["stage"], 1),
        "times_pymatgen": round(seconds["sample_pymatgen"] / seconds["sample"], 2),
        "times_pymatgen_one_process": round(
            seconds["sample_pymatgen"] / seconds["sample_one_process"], 2
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
