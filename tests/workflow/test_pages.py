"""What the pages of documentation refer to exists: links, files, tests, keys and options."""

import re
from pathlib import Path

import pytest
import typer
import yaml
from pages import LINKED, PAGES, anchors, changes, links, name, spans
from projects import ROOT
from snakemake.utils import update_config

from diffractory.cli import app

SUFFIXES = (".py", ".yaml", ".smk", ".cff")
OF_USERS = {"mine.yaml"}
OF_OTHERS = {"--software-deployment-method"}
"""Options of Snakemake."""


def merged_config():
    """Return the configuration with what every scale adds to it."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for path in (ROOT / "config").glob("*.yaml"):
        update_config(config, yaml.safe_load(path.read_text()))
    return config


def keys(tree):
    """Yield every key in a tree of mappings and lists."""
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, dict | list):
            yield from keys(part)
    yield from tree if isinstance(tree, dict) else ()


CONFIG = merged_config()
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
PROFILE = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
KEYS = {*keys(CONFIG), *keys(SCHEMA), *keys(PROFILE)}


def has(tree, path):
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def options():
    """Return the options of all commands of `diffractory`, by command."""
    commands = typer.main.get_command(app).commands
    return {
        command: {o for p in commands[command].params for o in p.opts if o.startswith("--")}
        for command in commands
    }


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_the_index_has_every_page():
    index = ROOT / "docs/README.md"
    linked = {(index.parent / path).resolve() for path, _ in links(index)}
    pages = {*(ROOT / "docs").glob("*.md"), ROOT / "docs/results/README.md"} - {index}
    assert pages <= linked


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_keys_of_the_configuration_exist(page):
    for span in spans(page):
        key, _, value = span.partition(": ")
        path = key.split(".")
        is_file = key.endswith((*SUFFIXES, ".md", ".parquet"))
        if is_file or not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", key):
            continue
        if len(path) > 1 and path[0] in CONFIG:
            assert has(CONFIG, path), key
        elif value:
            assert path[-1] in KEYS, span


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_tests_exist(page):
    folders = ("benchmarks", "config", "envs", "profiles", "src", "tests", "workflow")
    files = [*ROOT.iterdir(), *(f for name in folders for f in (ROOT / name).rglob("*"))]
    there = [f"/{path.relative_to(ROOT)}" for path in files if path.suffix in SUFFIXES]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    added = {Path(path).name for path, *_ in changes(page)}
    for span in set(spans(page)) - OF_USERS:
        if re.fullmatch(r"[\w./-]+", span) and span.endswith(SUFFIXES):
            exists = any(path.endswith(f"/{span}") for path in there)
            assert exists or Path(span).name in added, span
        if re.fullmatch(r"test_\w+", span):
            assert f"def {span}(" in tests, span


def test_every_option_is_documented_and_exists():
    said = [span for page in PAGES for span in spans(page) if re.match("--|diffractory ", span)]
    named = {option for span in said for option in re.findall(r"--[\w-]+", span)}
    own = set().union(*options().values())
    assert own - named == set(), "in no page"
    programs = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    assert named - own - OF_OTHERS <= {*re.findall(r'"(--[\w-]+)"', programs)}
