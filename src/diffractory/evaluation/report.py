"""The report: all tables and figures, what stands in, and what ran, in one self-contained page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from xml.etree import ElementTree as ET

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffractory.evaluation.report_stages import costs, duration, read_stage, software, what_ran
from diffractory.evaluation.report_summary import Shown, headlines, not_run, stand_in_list
from diffractory.evaluation.tables import NOT_RUN, Grid, Table, grid, heading, listed, read_table
from diffractory.store import InputError, recorded, write_text

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

OPENED = {
    "symmetry-t3", "symmetry-f2", "ued-taccuracy", "ued-f3",
    "structure_2d-t1", "structure_2d-f4", "generation-t1", "generation-fS2",
}  # fmt: skip
"""Tables and figures that are seen at once; others are opened by their names."""


@dataclass(frozen=True)
class ShownTable:
    """A table in the report."""

    study: str
    name: str
    table: Table
    grid: Grid
    files: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class ShownFigure:
    """A figure in the report."""

    study: str
    name: str
    title: str
    caption: str
    svg: Markup
    files: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Study:
    """The tables and figures of one study."""

    name: str
    title: str
    citation: str
    doi: str
    tables: tuple[ShownTable, ...]
    figures: tuple[ShownFigure, ...]

    @property
    def headlines(self) -> list[Shown]:
        """The main numbers."""
        return headlines(self.name, (shown.table for shown in self.tables))

    @property
    def stand_ins(self) -> list[tuple[str, str]]:
        """What stands in for something, and in which tables."""
        return stand_in_list((shown.name, shown.table) for shown in self.tables)

    @property
    def left_out(self) -> list[str]:
        """What the tables have no number of."""
        return not_run([shown.table for shown in self.tables])


def make_report(
    output: Path,
    tables: Sequence[Path],
    figures: Sequence[Path],
    records: Sequence[Path],
    command: str,
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
    command
        What makes a table or figure again, with ``{file}`` where its path belongs.
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
    config = {"command": command}
    with recorded(run, "report", config, [*written, *figures], [output], seed):
        shown_tables = [_shown_table(path, output.parent, command) for path in tables]
        shown_figures = [_shown_figure(path, output.parent, command) for path in figures]
        write_text(output, _page(shown_tables, shown_figures, records, output.parent))


def _page(
    tables: Sequence[ShownTable],
    figures: Sequence[ShownFigure],
    records: Sequence[Path],
    folder: Path,
) -> str:
    """Return the page, with the names of records relative to a folder."""
    others = [shown.study for shown in tables] + [shown.study for shown in figures]
    names = dict.fromkeys([*STUDIES, *others])
    studies = [_study(name, tables, figures) for name in names]
    studies = [study for study in studies if study.tables or study.figures]
    environment = Environment(
        loader=PackageLoader("diffractory.evaluation", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    stages = [read_stage(path, folder) for path in records]
    return environment.get_template("report.html.jinja").render(
        studies=studies,
        opened=OPENED,
        stages=stages,
        ran=what_ran(stages),
        costs=costs(stages),
        software=software(stages),
        runs=_runs(studies),
        not_run=NOT_RUN,
        duration=duration,
        heading=heading,
    )


def _study(name: str, tables: Sequence[ShownTable], figures: Sequence[ShownFigure]) -> Study:
    title, citation, doi = STUDIES.get(name, (name, "", ""))
    return Study(
        name,
        title,
        citation,
        doi,
        tuple(sorted((shown for shown in tables if shown.study == name), key=_in_order)),
        tuple(sorted((shown for shown in figures if shown.study == name), key=_in_order)),
    )


def _runs(studies: Sequence[Study]) -> list[str]:
    """Return the data sets of the tables, by scale and seed."""
    found: dict[str, dict[str, None]] = {}
    for study in studies:
        for shown in study.tables:
            cells = shown.table.cells[["scale", "seed", "dataset"]].drop_duplicates()
            for scale, seed, dataset in cells.to_numpy():
                found.setdefault(f"Scale {scale}, seed {seed}", {})[dataset] = None
    return [f"{run}: {listed(list(datasets))}" for run, datasets in found.items()]


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


def _shown_table(path: Path, folder: Path, command: str) -> ShownTable:
    name, table = _name(path, "table"), read_table(path)
    files = _files(path, folder, ".csv", ".md")
    made_by = command.format(file=path.as_posix())
    return ShownTable(path.parent.name, name, table, grid(table.cells), files, made_by)


def _shown_figure(path: Path, folder: Path, command: str) -> ShownFigure:
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        raise InputError(f"the figure {path} cannot be read ({error}): make it again") from error
    title = root.findtext("{*}title", default="")
    caption = root.findtext(".//{*}description", default="")
    svg = _inline(root, f"{path.parent.name}-{path.stem}", title)
    files = _files(path, folder, ".svg", ".png", ".csv")
    name, made_by = _name(path, "figure"), command.format(file=path.as_posix())
    return ShownFigure(path.parent.name, name, title, caption, svg, files, made_by)


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
