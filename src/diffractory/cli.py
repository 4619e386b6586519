"""The command line: parse, call one function, print."""

# Functions of the package are imported by the command that calls them, so that help is at once.

import os
import sys
from contextlib import suppress
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from diffractory.errors import InputError

if TYPE_CHECKING:
    from diffractory.store.lineage import Product, Record

STYLES = {"changed since": "red", "unchanged": "green"}
STYLES |= {"ok": "green", "warning": "yellow", "problem": "red"}

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """Run a command; end on bad input with one sentence and exit code 2."""
    try:
        app()
    except (InputError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


@app.callback()
def diffractory() -> None:
    """Look at what the workflow made, and at what it runs on."""


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="A table, figure, prediction file, model, store or report.")
    ],
) -> None:
    """Tell where a product came from, back to the structures as retrieved."""
    from diffractory.store.lineage import lineage

    with Console(stderr=True).status("Comparing files with their records"):
        product = lineage([path])[0]
    records: dict[Path, Record] = {}
    tree = Tree(_label(product, product.paths[0]))
    _grow(tree, product, records)
    _print(tree)
    for line in _notes(list(records.values())):
        _print(line)


@app.command()
def doctor() -> None:
    """Check what the workflow needs: versions, processors, SLURM, disks, keys, data, results."""
    from diffractory.doctor import examine

    problems = 0
    for finding in examine(Path.cwd()):
        problems += finding.status == "problem"
        line = Text.assemble(
            (f"{finding.status:8}", STYLES[finding.status]), f"{finding.check}: {finding.found}"
        )
        _print(line.append(f"; {finding.advice}" if finding.advice else ""))
    raise typer.Exit(1 if problems else 0)


@app.command()
def predict(
    scan: Annotated[
        Path, typer.Argument(help="A 4D-STEM scan: .hspy, .zspy, .blo, .mib, .dm4, .tif, .npy, ...")
    ],
    model: Annotated[
        Path, typer.Option(help="Folder of a trained model, as results/models/symmetry/ours.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Map folder to write; else SCAN.map in this folder.")
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="1/angstrom, where the file does not tell it.")
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Of the electrons, kV, where the file does not tell it.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Order of the axes in the file, such as qy,qx,ry,rx.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of the scan in a file that holds several.")
    ] = None,
    min_spots: Annotated[
        int, typer.Option(help="Positions with fewer diffracted spots are left out.")
    ] = 5,
    median_filter: Annotated[
        int, typer.Option(help="Side of the square of positions whose median counts; 1: none.")
    ] = 5,
    min_confidence: Annotated[
        float, typer.Option(help="Least difference of the two largest probabilities.")
    ] = 0.005,
    pool: Annotated[
        bool, typer.Option("--pool", help="Ask about the positions of a grain together.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look only at every fourth row and column.")
    ] = False,
    vacuum: Annotated[
        str | None, typer.Option(help="Rows and columns without a specimen, as 0:4,0:16.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="PNG, TIFF or .npy: zero where a pixel does not count.")
    ] = None,
    rotation: Annotated[
        float, typer.Option(help="From the map's +q_x axis to that of the detector, degree.")
    ] = 0.0,
    thickness: Annotated[
        float | None, typer.Option(help="Of the specimen, angstrom: warns if the model's differ.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Map crystal systems and space groups over a 4D-STEM scan."""
    # Threads that wait by spinning take the time of those that work, where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from diffractory.experiment.maps import MapSettings
    from diffractory.experiment.predict import QUICK, predict_scan

    summary = predict_scan(
        scan,
        model,
        output or Path(f"{scan.stem}.map"),
        MapSettings(min_spots, median_filter, min_confidence, pool),
        pixel_size,
        None if energy is None else 1000 * energy,
        axes,
        dataset,
        vacuum,
        mask,
        rotation,
        thickness,
        QUICK if quick else 1,
        device,
    )
    print(f"Scan: {summary.scan}\nModel: {summary.model}\n")
    for name, positions, fraction in summary.fractions.itertuples(index=False):
        share = f"{fraction:8.1%}" if fraction == fraction else ""
        if positions:
            print(f"{name:16}{positions:>10,}{share}")
    print(f"\nMap: {summary.folder}")


@app.command()
def steer(
    folder: Annotated[Path, typer.Argument(help="Images: PNG, TIFF or .npy, one in each file.")],
    models: Annotated[
        Path, typer.Option(help="Folder with the networks cnn_exp or cnn_syn, and c_vae.")
    ] = Path("results/models/ued"),
    watch: Annotated[bool, typer.Option(help="Go on with new images, until Ctrl-C.")] = False,
    pixel_size: Annotated[
        float | None,
        typer.Option(help="1/angstrom; not for images that have the pixels of the networks."),
    ] = None,
    centre: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Row and column of the direct beam; else found in each image."),
    ] = None,
    rotation: Annotated[
        float, typer.Option(help="From +q_x of the networks to that of the images, degree.")
    ] = 0.0,
    background: Annotated[float, typer.Option(help="What the camera adds to each pixel.")] = 0.0,
) -> None:
    """Score ultrafast-diffraction images: class, and distance to the 2H-1T' line."""
    from diffractory.experiment.geometry import Geometry
    from diffractory.experiment.steering import HEADER, Scorer, line, steer, summary

    scorer = Scorer(models, Geometry(pixel_size, centre, rotation, background))
    scores = []
    print(line(HEADER, sys.stdout.isatty()), flush=True)
    with suppress(KeyboardInterrupt):
        for score in steer(folder, scorer, watch):
            scores.append(score)
            print(line(score.fields, sys.stdout.isatty()), flush=True)
    print(summary(scores), file=sys.stderr)


@app.command()
def evaluate_structures(
    generated: Annotated[
        Path, typer.Argument(help="Folder of CIF or POSCAR files, or a .csv or .parquet table.")
    ],
    reference: Annotated[Path, typer.Argument(help="The same, such as the test set.")],
    paired: Annotated[
        bool, typer.Option(help="Compare structures of the same name: reconstruction.")
    ] = False,
    structure_cutoff: Annotated[
        float, typer.Option(help="Of COV-R and COV-P; 0.2 for Perov-5 and Carbon-24.")
    ] = 0.4,
    composition_cutoff: Annotated[
        float, typer.Option(help="Of COV-R and COV-P; 4 for Perov-5 and Carbon-24.")
    ] = 10.0,
    energies: Annotated[bool, typer.Option(help="Formation energies too, by CHGNet.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="By default one a core.")] = None,
) -> None:
    """Judge generated crystals: validity, coverage, distributions, uniqueness, novelty."""
    from diffractory.evaluation.evaluate_structures import (
        evaluate_generated,
        evaluate_pairs,
        lines,
        read_collection,
    )

    workers = processes or os.cpu_count() or 1
    ours, theirs = (read_collection(path, paired, workers) for path in (generated, reference))
    for path, found in ((generated, ours), (reference, theirs)):
        for name, reason in found.unreadable.items():
            print(f"{path}: {name} is left out: {reason}", file=sys.stderr)
        total = len(found.cells) + len(found.unreadable)
        print(f"{path}: {len(found.cells):,} of {total:,} structures read")
    if paired:
        names = [name for name in ours.cells if name in theirs.cells]
        print(f"{len(names):,} pairs of the same name")
        if not names:
            raise InputError("no two structures have the same name: leave out --paired")
        made, true = ([found.cells[name] for name in names] for found in (ours, theirs))
        rows = evaluate_pairs(made, true, workers)
    else:
        made, true = (list(found.cells.values()) for found in (ours, theirs))
        rows = evaluate_generated(
            made, true, structure_cutoff, composition_cutoff, energies, workers
        )
    print(*lines(rows), sep="\n")


def _print(content: Tree | Text | str) -> None:
    """Print; lines are broken to fit a terminal, and not at all in a file or a pipe."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 100_000
    console.print(content)


def _grow(tree: Tree, product: "Product", records: dict[Path, "Record"]) -> None:
    """Add what a product came from; a record that was shown before is only referred to."""
    if product.record:
        records[product.record.path] = product.record
    for source in product.inputs:
        names = ", ".join(source.paths[:2])
        names += f" and {len(source.paths) - 2} more" if len(source.paths) > 2 else ""
        known = source.record is not None and source.record.path in records
        label = Text.assemble(f"{names}: ", (source.state, STYLES.get(source.state, "")))
        if known:
            tree.add(label.append(", made as above"))
        else:
            _grow(tree.add(_label(source, label)), source, records)


def _label(product: "Product", first: str | Text) -> Text:
    """Return the lines about a product: its files, its stage and its counts."""
    label, record = Text.assemble(first), product.record
    if record is None:
        return label
    seconds = record.seconds
    took = f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
    if product.damaged:
        names = ", ".join(path.name for path in product.damaged)
        label.append(f"\ndamaged or changed after it was written: {names}", "red")
    label.append(
        f"\n{record.stage}, {record.start.astimezone(UTC):%Y-%m-%d %H:%M} UTC, took {took}, "
        f"commit {record.commit}, seed {record.seed}"
    )
    counts = ", ".join(_count(name, value) for name, value in record.counts.items())
    return label.append(f"\n{counts}" if counts else "")


def _count(name: str, value: int | dict[str, int]) -> str:
    if isinstance(value, int):
        return f"{name} {value}"
    parts = ", ".join(f"{part} {n}" for part, n in value.items())
    return f"{name} {sum(value.values())}" + (f" ({parts})" if parts else "")


def _notes(records: list["Record"]) -> list[str]:
    """Return the versions of the first stage, and which stages had others."""
    usual = records[0].versions if records else {}
    lines = [f"Versions: {', '.join(f'{name} {v}' for name, v in usual.items())}"]
    for record in records[1:]:
        others = [
            f"{name} {record.versions.get(name, 'missing')}"
            for name in usual | record.versions
            if record.versions.get(name) != usual.get(name)
        ]
        if others:
            lines.append(f"{record.stage} had {', '.join(others)}")
    if any(record.commit.endswith("+") for record in records):
        lines.append("A plus sign after the commit: tracked files had been changed.")
    return list(dict.fromkeys(lines))
