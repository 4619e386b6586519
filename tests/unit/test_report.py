"""The report is one page that needs nothing else, says everything, and believes no input."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from diffractory.evaluation.report import make_report
from diffractory.evaluation.report_stages import Cost, costs, read_stage, what_ran
from diffractory.evaluation.report_summary import HEADLINES, Bar, headlines, not_run
from diffractory.evaluation.style import figure_style, write_figure
from diffractory.evaluation.tables import Table, provenance_note, read_table, write_table
from diffractory.store import InputError, recorded

RESULTS = Path(__file__).parents[2] / "docs/results"
HOSTILE = '<script>alert("x")</script> & </table> "quoted"'
ID = "symmetry-textra"
VOID = {"meta", "br", "hr", "img", "input", "link", "source", "wbr", "col"}


class Page(HTMLParser):
    """Collect elements, check that they nest, and keep the text outside of style."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if not self.open or self.open[-1] != "style":
            self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def make_inputs(folder, study="symmetry", dataset="toy"):
    """Write two tables, two figures and two records."""
    tables, figures = [], []
    for number, stand_in in ((10, "a toy in place of nature"), (2, "")):
        cells = [
            {"row": row, "column": column, "unit": unit, "value": value, "interval": interval,
             "published": published, "n_train": 1200, "n_test": 345, "items": "patterns",
             "study": study, "table": number, "dataset": dataset, "scale": "demo", "seed": 5,
             "stand_in": stand_in}
            for row, column, unit, value, interval, published in (
                ("Cubic", "A | B", "%", "91.3", "90.1-92.2", "88.8"),
                ("Cubic", "C", "%", "not run", "", "77.7"),
                ("Other", "A | B", "%", f"{number}.5", "", ""),
            )
        ]  # fmt: skip
        csv = folder / "tables" / study / f"table_{number}.csv"
        notes = ("First note.", f"Dataset {dataset}.")
        words = Table(pd.DataFrame(cells), f"Caption {number} of {dataset}.", "System", notes)
        write_table(words, csv, csv.with_suffix(".md"))
        tables.append(csv)
        svg = folder / "figures" / study / f"figure_{number}.svg"
        with figure_style():
            figure = Figure(figsize=(3, 2))
            ax = figure.add_subplot()
            ax.plot([1, 2], [3, 4], marker="o")
            ax.set_title(f"panel {number}")
            caption = f"Figure of {dataset}."
            write_figure(figure, f"Title {dataset}", caption, svg, svg.with_suffix(".png"))
        figures.append(svg)
    records = []
    for stage, facts in (
        ("clean", {"accepted": 1234, "rejected": {"duplicate": 40, dataset: 2}}),
        ("train", {"rows": 9}),
    ):
        records.append(folder / f"{stage}.run.json")
        with recorded(records[-1], stage, {"lattice": {"tolerance": 0.25}}, [], [], 5) as found:
            found.update(facts)
    return tables, figures, records


def build(folder, *inputs):
    output = folder / "report.html"
    make_report(output, *inputs, "make {file} -x", run=folder / "report.run.json", seed=5)
    return output.read_text("utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    inputs = make_inputs(folder)
    other = make_inputs(folder / "other", study="a_new_study")
    return build(folder, inputs[0] + other[0], inputs[1] + other[1], inputs[2])


def test_page_needs_nothing_else(report):
    page = Page(report)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "srcset", "data", "href", "action", "poster"}:
                allowed = tag == "a" and value.startswith("https://doi.org/")
                assert value.startswith("#") or allowed
    assert not re.search(r"@import|url\((?!#)", report)
    assert "http" not in report.replace("https://doi.org/", "").replace("http-equiv", "")
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_names_are_unique_and_references_resolve(report):
    page = Page(report)
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in page.elements:
        for name in ("href", "aria-labelledby"):
            value = attributes.get(name, "")
            if value.startswith("#") or (name == "aria-labelledby" and value):
                assert value.lstrip("#") in names
        for value in attributes.values():
            assert all(target in names for target in re.findall(r"url\(#([^)]*)\)", value or ""))
    assert page.all("use")  # the markers of the plots, so that there was something to resolve


def test_page_is_accessible(report):
    page = Page(report)
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert len(page.all("svg")) == len(page.all("figcaption")) == 4
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    sizes = re.findall(r"font(?:-size)?:\s*(\d+)px", report.partition("</style>")[0])
    assert sizes
    assert min(int(size) for size in sizes) >= 16


def test_page_says_everything(report):
    text = Page(report).text
    for words in ("91.3", "90.1-92.2", "88.8", "77.7", "not run", "1,200 / 345", "A | B (%)",
                  "Caption 10 of toy.", "First note.", "Figure of toy.", "panel 10",
                  "tables/symmetry/table_2.csv", "figures/symmetry/figure_10.png",
                  "1,234", "duplicate: 40", "lattice.tolerance", "0.25", "numpy",
                  "A toy in place of nature (table 10)", "Scale demo, seed 5: toy",
                  "Nathani", "doi:10.1038/s41524-025-01927-5",
                  "a_new_study"):  # fmt: skip
        assert words in text, words
    assert text.index("Caption 2 of") < text.index("Caption 10 of") < text.index("Figure of toy")


def test_page_shows_time_memory_machine_and_commit(tmp_path):
    tables, figures, records = make_inputs(tmp_path)
    record = json.loads(records[0].read_text("utf-8"))
    record |= {"seconds": 3725.0, "peak_memory_gib": 1.5, "git_commit": "abc" * 13 + "d"}
    for dirty in (True, False):
        records[0].write_text(json.dumps(record | {"git_dirty": dirty}), "utf-8")
        text = Page(build(tmp_path, tables, figures, records)).text
        assert "1 h 02 min 1.50 GiB" in text
        assert f"{record['host']['machine']}, {record['host']['cores']} cores, cpu" in text
        assert ("abcabcabca+" in text) is dirty
        assert "abcabcabca" in text


def test_each_table_and_figure_has_the_command_that_makes_it(tmp_path):
    tables, figures, records = make_inputs(tmp_path)
    text = Page(build(tmp_path, tables, figures, records)).text
    for path in (*tables, *figures):
        assert f"Made by make {path.as_posix()} -x" in text


def test_hostile_text_stays_text(tmp_path):
    page_text = build(tmp_path, *make_inputs(tmp_path, dataset=HOSTILE))
    page = Page(page_text)
    assert not page.all("script")
    assert page.text.count('<script>alert("x")</script>') >= 5
    assert f"{HOSTILE}: 2" in page.text
    assert all(svg["aria-label"] == f"Title {HOSTILE}" for svg in page.all("svg"))


def test_same_inputs_same_page(tmp_path):
    inputs = make_inputs(tmp_path)
    assert build(tmp_path, *inputs) == build(tmp_path, *inputs)


def test_table_files_survive_reading_back(tmp_path):
    tables, _, _ = make_inputs(tmp_path)
    markdown = tables[0].with_suffix(".md").read_text("utf-8").splitlines()
    assert markdown[0] == "**Table 10.** Caption 10 of toy."
    assert (
        markdown[2]
        == r"| System | A \| B (%) | published | C (%) | published | train / test patterns |"
    )
    assert markdown[4] == "| Cubic | 91.3 (90.1-92.2) | 88.8 | not run | 77.7 | 1,200 / 345 |"
    assert markdown[-2:] == ["- First note.", "- Dataset toy."]


def small_table(folder, published, stand_ins):
    """Write a table of one row with these published values and stand-ins by column."""
    cells = pd.DataFrame({
        "row": "Cubic", "column": list("ABC"), "unit": "", "value": list("123"), "interval": "",
        "published": published, "n_train": 5, "n_test": 6, "items": "patterns", "study": "symmetry",
        "table": "extra", "dataset": "toy", "scale": "demo", "seed": 5, "stand_in": stand_ins,
    })  # fmt: skip
    csv = folder / "symmetry" / "table_extra.csv"
    write_table(Table(cells, "Caption.", "System", ("Note.",)), csv, csv.with_suffix(".md"))
    return csv, csv.with_suffix(".md").read_text("utf-8").splitlines(), cells


@pytest.mark.parametrize(
    ("published", "header", "line"),
    [
        (("", "9", ""), "| System | A | B | published | C |", "| Cubic | 1 | 2 | 9 | 3 |"),
        (("", "", ""), "| System | A | B | C |", "| Cubic | 1 | 2 | 3 |"),
    ],
)
def test_columns_without_published_values_have_no_place_for_them(published, header, line, tmp_path):
    csv, lines, _ = small_table(tmp_path, published, "")
    assert lines[2] == f"{header} train / test patterns |"
    assert lines[4] == f"{line} 5 / 6 |"
    assert len({text.count("|") for text in lines[2:5]}) == 1
    page = Page(build(tmp_path, [csv], [], []))
    table = page.elements[page.elements.index(("table", {"aria-labelledby": f"{ID}-h"})) :]
    table = table[: [tag for tag, _ in table].index("section")]
    n_columns = lines[2].count("|") - 1
    assert sum(tag == "td" for tag, _ in table) == n_columns - 1
    head = [attributes for tag, attributes in table if tag == "th"][:-1]
    spans = [(int(a.get("colspan", 1)), int(a.get("rowspan", 1))) for a in head]
    n_lines = 2 if any(published) else 1
    # Every place of the head is taken once, by a cell of one or more columns and lines.
    assert sum(columns * rows for columns, rows in spans) == n_columns * n_lines
    assert sum("published" in a.get("class", "") for a in head) == len(
        list(filter(None, published))
    )


def test_each_stand_in_is_named_once(tmp_path):
    csv, _, cells = small_table(tmp_path, "", ["a toy", "a toy; a model", "a model"])
    note = "Dataset toy, scale demo, seed 5. Stand-ins: a toy; a model."
    assert provenance_note(cells) == note
    text = Page(build(tmp_path, [csv], [], [])).text
    assert text.count("A toy (") == text.count("A model (") == 1
    assert "A toy; a model" not in text
    assert provenance_note(cells.assign(stand_in="")) == "Dataset toy, scale demo, seed 5."


def test_bad_inputs_are_named(tmp_path):
    tables, figures, records = make_inputs(tmp_path)
    tables[0].with_suffix(".md").unlink()
    with pytest.raises(InputError, match=r"table_10\.csv"):
        build(tmp_path, tables, figures, records)
    figures[1].write_text("<svg", "utf-8")
    with pytest.raises(InputError, match=r"figure_2\.svg"):
        build(tmp_path, tables[1:], figures, records)
    records[1].write_text('{"stage": "train"}', "utf-8")
    with pytest.raises(InputError, match=r"train\.run\.json"):
        build(tmp_path, tables[1:], figures[:1], records)
    with pytest.raises(InputError, match="table_N"):
        build(tmp_path, [tables[1].rename(tables[1].with_name("tab.csv"))], [], [])


def test_images_in_a_figure_come_with_the_page(tmp_path):
    tables, figures, records = make_inputs(tmp_path, study="ued")
    with figure_style():
        figure = Figure(figsize=(3, 2))
        figure.add_subplot().imshow([[0, 1], [2, 3]], interpolation="none")
        write_figure(figure, "Image", "An image.", figures[0], figures[0].with_suffix(".png"))
    page = Page(build(tmp_path, tables, figures, records))
    (image,) = page.all("image")
    assert image["href"].startswith("data:image/png;base64,")
    assert "Shaaban et al." in page.text
    # No DOI of the study is known, and a link to nowhere would be worse than none.
    assert all(link["href"].startswith("#") for link in page.all("a"))


def cells_of(study, table, *rows):
    """Return a table of (row, column, unit, value, interval, published, stand-in)."""
    names = ["row", "column", "unit", "value", "interval", "published", "stand_in"]
    rest = {"study": study, "table": table, "n_train": "9", "n_test": "1200", "items": "patterns"}
    return Table(pd.DataFrame(rows, columns=names).assign(**rest), "", "", ())


def test_headlines_pair_what_was_made_with_what_was_published():
    table = cells_of(
        "symmetry", "1",
        ("Ours", "All test items", "fraction", "0.5", "0.453\N{EN DASH}0.55", "", ""),
        ("RF", "Mean without triclinic", "fraction", "0.848", "", "0.742", "a toy"),
        ("RF", "All test items", "fraction", "0.9", "", "", "a toy"),
        ("PE-AG-GMoE", "All test items", "fraction", "not run", "", "0.892", ""),
    )  # fmt: skip
    (shown,) = headlines("symmetry", [table])
    forest, ours = shown.pairs
    assert (forest.label, forest.n_test) == ("RF, mean of six systems", "1,200 patterns")
    assert (forest.here, forest.published) == (Bar("84.8 %", 84.8), Bar("74.2 %", 74.2))
    assert (forest.stand_in, ours.stand_in) == (True, False)
    assert (ours.here, ours.published) == (Bar("50 %", 50.0), None)
    assert ours.interval == "45.3\N{EN DASH}55"
    assert headlines("ued", [table]) == []


def test_headlines_without_a_whole_are_drawn_by_the_largest():
    energy = ("RMS energy change (meV/atom)", "", "400", "", "800", "")
    table = cells_of(
        "generation", "3", ("Toys, DP-CDVAE", *energy), ("Gems, DP-CDVAE", *energy),
        ("Toys, CDVAE", energy[0], "", "\N{EN DASH}", "", "900", ""),
    )  # fmt: skip
    (shown,) = headlines("generation", [table])
    assert [pair.label for pair in shown.pairs] == ["Toys, DP-CDVAE", "Gems, DP-CDVAE"]
    assert [pair.here for pair in shown.pairs] == [Bar("400", 50.0)] * 2
    assert [pair.published for pair in shown.pairs] == [Bar("800", 100.0)] * 2


@pytest.mark.parametrize("headline", [one for one in HEADLINES if one.table != "scan"])
def test_headlines_are_in_the_tables_of_the_recorded_runs(headline):
    csv = RESULTS / f"{headline.study}_desk/table_{headline.table}.csv"
    shown = [one for one in headlines(headline.study, [read_table(csv)])
             if one.words == headline.words]  # fmt: skip
    assert len(shown[0].pairs) == len(headline.cells)
    assert all(pair.here.percent is not None for pair in shown[0].pairs)


def test_what_was_not_run_is_named_in_short():
    def cells(table, *rows):
        return cells_of("x", table, *((row, "A", "", value, "", "", "") for row, value in rows))

    first = cells("1", ("Toys, A", "1"), ("Toys, B", "not run"), ("Gems, A", "not run"))
    second = cells("2", ("Gems, B", "not run"), ("Toys, C", "not run"), ("Toys, B", "3"))
    assert not_run([first, second]) == ["Gems", "Toys, C"]


def test_cost_is_that_of_all_jobs_of_a_stage(tmp_path):
    stages = []
    for n, (name, seconds, memory) in enumerate((("a", 10, 2), ("b", 80, 1), ("a", 30, 0.5))):
        path = tmp_path / f"{n}.run.json"
        with recorded(path, name, {}, [], [], 5) as facts:
            facts["converged"], facts["reasons"] = 7, {"too slow": n}
        times = {"start": f"2026-11-22T0{n}:00:00+00:00", "end": f"2026-11-22T0{n}:30:00+01:00"}
        record = json.loads(path.read_text("utf-8"))
        record |= {"seconds": seconds, "peak_memory_gib": memory, **times}
        path.write_text(json.dumps(record), "utf-8")
        stages.append(read_stage(path, tmp_path))
    longest, other = costs(stages)
    assert longest == Cost("b", 1, 80, 80, 1, 100.0)
    assert other == Cost("a", 2, 40, 30, 2, 50.0)
    ran = what_ran(stages)
    assert (ran.jobs, ran.seconds, len(ran.machines)) == (3, 120, 1)
    assert (ran.start.isoformat(), ran.end.isoformat()) == (
        "2026-11-22T00:00:00+00:00", "2026-11-22T01:30:00+00:00"
    )  # fmt: skip
    assert [(stage.kept, stage.rejected) for stage in stages] == [
        (7, (n, [("too slow", n)])) for n in range(3)
    ]
    assert what_ran([]) is None
