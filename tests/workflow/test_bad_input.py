"""Bad structures are named, set aside and counted, and the run goes on to its report."""

import csv

import numpy as np
import pandas as pd
from projects import ROOT
from pymatgen.core import Lattice, Structure

CI = str(ROOT / "config/ci.yaml")
SMALL = {
    "scale": "ci",
    "dataset": "mine",
    "simulate": {"count": 4, "g_max": 1.0, "shards": 1},
    "split": {"new_prototypes": 0.0},
    "symmetry": {
        "hardware": {"threads": 2},
        "robustness": {"patterns": 5},
        "random_forest": {"n_estimators": 5},
        "pe_ag_gmoe": {
            "network": {"input_dim": 64, "n_layers": 1},
            "training": {"epochs": 1, "patterns_per_epoch": 64},
        },
        "mvof_ml": {"training": {"epochs": 1, "patterns_per_epoch": 64}},
        "ours": {"training": {"epochs": 1, "patterns_per_epoch": 640}},
    },
}
TARGET = "results/structures/mine/structures.parquet"
HALITE = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)]
)


def cif(structure: Structure) -> str:
    return structure.to(fmt="cif")


def good() -> dict[str, bytes]:
    metals = ["Cu", "Ag", "Au", "Al", "Ni", "Pd", "Pt", "Pb", "Ca", "Sr", "Rh", "Ir"]
    bcc, hcp = Lattice.cubic(4.0), Lattice.hexagonal(3.0, 4.9)
    crystals = {m: Structure(bcc, [m] * 2, [(0, 0, 0), (0.5,) * 3]) for m in metals}
    sites = [(1 / 3, 2 / 3, 0.25), (2 / 3, 1 / 3, 0.75)]
    crystals |= {f"hcp-{m}": Structure(hcp, [m] * 2, sites) for m in metals}
    return {name: cif(crystal).encode() for name, crystal in crystals.items()}


def bad() -> dict[str, tuple[bytes, str]]:
    """Return broken structure files with the reason that each must be rejected for."""
    text = cif(HALITE)
    partial = Structure(HALITE.lattice, [{"Na": 0.5}] * 4 + ["Cl"] * 4, HALITE.frac_coords)
    rutherfordium = Structure(HALITE.lattice, ["Rf"] * 4 + ["Cl"] * 4, HALITE.frac_coords)
    huge = Structure(Lattice.cubic(3.0), ["Cu"], [(0, 0, 0)]) * (8, 8, 8)
    one_site = Structure(HALITE.lattice, ["Na", "Na", "Cl"], [(0, 0, 0), (0, 0, 0), (0.5,) * 3])
    not_finite = text.replace("0.50000000", "nan")
    assert "nan" in not_finite
    return {
        "empty": (b"", "unparsable"),
        "truncated": (text[: int(len(text) * 0.9)].encode(), "unparsable"),
        "partial": (cif(partial).encode(), "disordered"),
        "rutherfordium": (cif(rutherfordium).encode(), "unsupported_element"),
        "huge": (cif(huge).encode(), "too_many_sites"),
        "one-site": (cif(one_site).encode(), "atoms_too_close"),
        "not-finite": (not_finite.encode(), "not_finite"),
        "latin-1": (text.replace("data_", "data_\u00e9").encode("latin-1"), "unparsable"),
    }


def rejections(project) -> dict[str, str]:
    folder = project.folder / "results/structures/mine"
    retrieved, accepted, rejected = (
        pd.read_parquet(folder / f"{name}.parquet")
        for name in ("retrieved", "structures", "rejected")
    )
    assert len(accepted) + len(rejected) == len(retrieved)
    assert rejected["detail"].str.len().min() > 0
    return dict(zip(rejected["material_id"], rejected["reason"], strict=True))


def test_table_with_every_bad_structure_runs_to_its_report(rerun):
    """All in one CSV, the non-UTF-8 row and a duplicate identifier included.

    What other studies have made of other structures stays.
    """
    rows = {"id": "cif"} | {k: v.decode() for k, v in good().items()}
    rows |= {k: v.decode("utf-8", "surrogateescape") for k, (v, _) in bad().items()}
    with (rerun.folder / "t.csv").open("w", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([*rows.items(), ("Cu", rows["Ag"])])
    table = {"source": "structure_table", "paths": ["t.csv"]}
    columns = {"structure_column": "cif", "id_column": "id"}
    path = rerun.write_config("bad", SMALL | {"datasets": {"mine": table | columns}})
    result = rerun.snakemake("--configfile", CI, path, DIFFRACTORY_DATA=str(rerun.folder))
    assert result.returncode == 0, result.stdout + result.stderr
    expected = {name: reason for name, (_, reason) in bad().items()} | {"Cu": "duplicate_id"}
    assert rejections(rerun) == expected
    page = (rerun.folder / "results/report.html").read_text()
    for reason in expected.values():
        assert reason in page


def test_folder_with_every_bad_file_is_cleaned(project):
    folder = project.folder / "crystals"
    folder.mkdir()
    for name, content in good().items():
        (folder / f"{name}.cif").write_bytes(content)
    for name, (content, _) in bad().items():
        (folder / f"{name}.cif").write_bytes(content)
    (folder / "README.txt").write_text("Not a structure.")
    (folder / "noise.poscar").write_bytes(np.random.default_rng(0).bytes(500))
    source = {"source": "structure_folder", "path": "crystals"}
    path = project.write_config("folder", SMALL | {"datasets": {"mine": source}})
    result = project.snakemake(TARGET, "--configfile", path, DIFFRACTORY_DATA=str(project.folder))
    assert result.returncode == 0, result.stdout + result.stderr
    expected = {name: reason for name, (_, reason) in bad().items()}
    assert rejections(project) == expected | {"README": "unparsable", "noise": "unparsable"}


def test_table_without_the_column_stops_in_one_sentence(project):
    (project.folder / "t.csv").write_text("id,structure\n1,x\n")
    table = {"source": "structure_table", "paths": ["t.csv"]}
    columns = {"structure_column": "cif", "id_column": "id"}
    path = project.write_config("bad", SMALL | {"datasets": {"mine": table | columns}})
    result = project.snakemake(TARGET, "--configfile", path, DIFFRACTORY_DATA=str(project.folder))
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "has no column 'cif'; the nearest is" in output
    assert "Traceback" not in output


def test_too_many_rejections_stop_the_run(project):
    folder = project.folder / "crystals"
    folder.mkdir()
    for name, content in list(good().items())[:3] + [(n, c) for n, (c, _) in bad().items()]:
        (folder / f"{name}.cif").write_bytes(content)
    source = {"source": "structure_folder", "path": "crystals"}
    config = SMALL | {"datasets": {"mine": source}, "max_rejected_fraction": 0.1}
    path = project.write_config("folder", config)
    result = project.snakemake(TARGET, "--configfile", path, DIFFRACTORY_DATA=str(project.folder))
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "max_rejected_fraction" in output
    assert "Traceback" not in output
