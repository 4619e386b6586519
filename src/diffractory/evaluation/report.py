"""The report: all tables and figures, what stands in, and what ran, in one self-contained page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffractory.evaluation.tables import (
    NOT_RUN,
    Grid,
    Table,
    grid,
    heading,
    listed,
    read_table,
    stand_ins,
)
from diffractory.store import InputError, recorded, write_text
from diffractory.store.provenance import not_a_record, read_record, short_commit

STUDIES = {
    "symmetry": (
        "Crystal system and space group from Bragg spots",
        "A. Nathani et al., npj Comput. Mater. (2026)",
        "10.1038/s41524-025-01927-5",
    ),
    "ued": (
        "Ultrafast diffraction of MoTe2 after a laser pulse",
        "M. Shaaban et al., Machine learning for experimental design of ultrafast electron "
        "diffraction, Sci. Rep. (2025)",
        "",
    ),
    "structure_2d": (
        "The two-dimensional crystal behind a pattern",
        "R. Fu et al., Commun. Phys. 8, 221 (2025)",
        "10.1038/s42005-025-02152-8",
    ),
    "generation": (
        "New crystals near their ground state",
        "T. Pakornchote et al., Sci. Rep. 14, 1275 (2024)",
        "10.1038/s41598-024-51400-4",
    ),
}
"""Title, citation and DOI of each study, in the order of the report."""


@dataclass(frozen=True)
class ShownTable:
    """A table in the report."""

    name: str
    table: Table
    grid: Grid
    files: tuple[str, ...]


@dataclass(frozen=True)
class ShownFigure:
    """A figure in the report."""

    name: str
    title: str
    caption: str
    svg: Markup
    files: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """The tables and figures of one study."""

    name: str
    title: str
    citation: str
    doi: str
    tables: tuple[ShownTable, ...]
    figures: tuple[ShownFigure, ...]


@dataclass(frozen=True)
class Stage:
    """What one record says, ready to print."""

    name: str
    product: str
    record: dict[str, Any]
    details: dict[str, list[tuple[str, str]]]

    @property
    def commit(self) -> str:
        """Short commit, with a plus sign if tracked files had been changed."""
        return short_commit(self.record)

    @property
    def kept(self) -> Any:
        """Number of items that the stage accepted, or None."""
        facts = self.record["facts"]
        return facts.get("accepted", facts.get("patterns"))

    @property
    def rejected(self) -> tuple[int, list[tuple[str, int]]] | None:
        """Number of items set aside, and the reasons with their counts, if the record has them."""
        found = self.record["facts"].get("rejected")
        if isinstance(found, dict):
            return sum(found.values()), list(found.items())
        return None if found is None else (int(found), [])


def make_report(
    output: Path,
    tables: Sequence[Path],
    figures: Sequence[Path],
    records: Sequence[Path],
    run: Path,
    seed: int,
) -> None:
    """Write the report.

    Parameters
    ----------
    output
        The HTML file to write. It needs no other file, no script and no network.
    tables
        CSV files ``.../{study}/table_{n}.csv``, each with its Markdown file beside it; n is a
        number of the paper, or a word.
    figures
        SVG files ``.../{study}/figure_{n}.svg`` as ``style.write_figure`` makes them.
    records
        The ``run.json`` files of the stages, in the order to show them.
    run
        ``run.json`` of the report itself, to write.
    seed
        Global seed.

    Raises
    ------
    InputError
        If a file is missing or not of this form.
    """
    written = [path.with_suffix(suffix) for path in tables for suffix in (".csv", ".md")]
    with recorded(run, "report", {}, [*written, *figures], [output], seed):
        write_text(output, _page(tables, figures, records, output.parent))


def _page(
    tables: Sequence[Path], figures: Sequence[Path], records: Sequence[Path], folder: Path
) -> str:
    """Return the page, with the names of files relative to a folder."""
    names = list(dict.fromkeys([*STUDIES, *(path.parent.name for path in (*tables, *figures))]))
    studies = [_study(name, tables, figures, folder) for name in names]
    studies = [study for study in studies if study.tables or study.figures]
    environment = Environment(
        loader=PackageLoader("diffractory.evaluation", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    stages = [_stage(path, folder) for path in records]
    return environment.get_template("report.html.jinja").render(
        studies=studies,
        stand_ins=_stand_ins(studies),
        stages=stages,
        software=_software(stages),
        runs=_runs(studies),
        not_run=NOT_RUN,
        duration=_duration,
        heading=heading,
    )


def _study(name: str, tables: Sequence[Path], figures: Sequence[Path], folder: Path) -> Study:
    title, citation, doi = STUDIES.get(name, (name, "", ""))
    shown_tables = [_shown_table(path, folder) for path in tables if path.parent.name == name]
    shown_figures = [_shown_figure(path, folder) for path in figures if path.parent.name == name]
    return Study(
        name,
        title,
        citation,
        doi,
        tuple(sorted(shown_tables, key=_in_order)),
        tuple(sorted(shown_figures, key=_in_order)),
    )


def _name(path: Path, kind: str) -> str:
    name = path.stem.removeprefix(f"{kind}_")
    if name in ("", path.stem):
        raise InputError(f"{path} is not named {kind}_N with a number or a word N: rename it")
    return name


def _in_order(shown: ShownTable | ShownFigure) -> tuple[int, str]:
    """Sort by number, and then by word."""
    return (int(shown.name), "") if shown.name.isdecimal() else (10**9, shown.name)


def _files(path: Path, folder: Path, *suffixes: str) -> tuple[str, ...]:
    return tuple(Path(relpath(path.with_suffix(suffix), folder)).as_posix() for suffix in suffixes)


def _shown_table(path: Path, folder: Path) -> ShownTable:
    name, table = _name(path, "table"), read_table(path)
    return ShownTable(name, table, grid(table.cells), _files(path, folder, ".csv", ".md"))


def _shown_figure(path: Path, folder: Path) -> ShownFigure:
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        raise InputError(f"the figure {path} cannot be read ({error}): make it again") from error
    title = root.findtext("{*}title", default="")
    caption = root.findtext(".//{*}description", default="")
    svg = _inline(root, f"{path.parent.name}-{path.stem}", title)
    files = _files(path, folder, ".svg", ".png", ".csv")
    return ShownFigure(_name(path, "figure"), title, caption, svg, files)


def _inline(root: ET.Element, prefix: str, title: str) -> Markup:
    """Return an SVG image as part of a page: no other file, and names that are its own."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag.rpartition("}")[2] in {"metadata", "title", "style"}:
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            name = key.rpartition("}")[2]
            if name == "id":
                value = f"{prefix}-{value}"
            elif name == "href" and value.startswith("#"):
                value = f"#{prefix}-{value[1:]}"
            element.attrib[name] = re.sub(r"url\(#", f"url(#{prefix}-", value)
    # matplotlib sets these for every element of a page, which would reach beyond the image
    style = "stroke-linejoin:round;stroke-linecap:butt"
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": title,
        "style": style,
    }
    return Markup(ET.tostring(root, encoding="unicode"))


def _stage(path: Path, folder: Path) -> Stage:
    try:
        record = read_record(path)
        details = {
            "Configuration": _flat(record["config"]),
            "Counts and facts": _flat(record["facts"]),
            "Inputs (SHA-256)": _flat(record["inputs"]),
        }
        return Stage(record["stage"], _files(path, folder, path.suffix)[0], record, details)
    except (KeyError, AttributeError) as error:
        raise not_a_record(path, error) from error


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as lines of dotted name and value."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += _flat(item, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", str(item)))
    return lines


def _software(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Return the different sets of versions, each with the stages that ran with it."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        versions = ", ".join(f"{name} {v}" for name, v in stage.record["versions"].items())
        found.setdefault(versions, []).append(stage.name)
    return [(versions, listed(list(dict.fromkeys(names)))) for versions, names in found.items()]


def _stand_ins(studies: Sequence[Study]) -> list[tuple[str, str]]:
    """Return what stands in for a part that cannot be had, and in which tables."""
    found: dict[str, list[str]] = {}
    for study in studies:
        for shown in study.tables:
            for text in stand_ins(shown.table.cells):
                found.setdefault(f"{text}\0{study.title}", []).append(shown.name)
    sentences = []
    for key, numbers in found.items():
        text, title = key.split("\0")
        plural = "s" if len(numbers) > 1 else ""
        sentences.append((text[:1].upper() + text[1:], f"{title}: table{plural} {listed(numbers)}"))
    return sentences


def _runs(studies: Sequence[Study]) -> list[str]:
    """Return the different runs that the tables come from: dataset, scale and seed."""
    lines = [
        f"dataset {dataset}, scale {scale}, seed {seed}"
        for study in studies
        for shown in study.tables
        for dataset, scale, seed in shown.table.cells[["dataset", "scale", "seed"]].to_numpy()
    ]
    return list(dict.fromkeys(lines))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
