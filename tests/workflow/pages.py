"""What the pages of documentation hold: commands, programs, configurations, keys and links."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from projects import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "docs/results/README.md"]
LANGUAGES = {"bash", "python", "yaml", "diff", "text"}
"""Of blocks: commands, programs, overrides of the configuration, changes, and what is not used."""
PROGRAMS = {"apt-get", "bash", "diffractory", "git", "mypy", "pip", "pytest", "python", "ruff",
            "snakefmt", "snakemake", "source", "tensorboard"}  # fmt: skip
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return FENCE.sub("", page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def spans(page: Path) -> list[str]:
    """Return what stands between backticks in the text."""
    return SPAN.findall(prose(page))


def in_blocks(page: Path) -> Iterator[str]:
    """Yield the commands in the blocks of a page, without comments."""
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            if command := re.split(r"(?:^|\s)#\s", line)[0].strip():
                yield command


def commands(page: Path) -> set[str]:
    """Return the commands of a page: in blocks, and a program with arguments in the text."""
    in_text = {span for span in spans(page) if span.split()[0] in PROGRAMS and " " in span}
    return {*in_blocks(page), *in_text}


def changes(page: Path) -> Iterator[tuple[str, str, str]]:
    """Yield path, language and text of the files that a page adds or changes, in order.

    A block belongs to the path that was named last before it.
    """
    path, end, text = "", 0, page.read_text()
    for block in FENCE.finditer(text):
        for span in SPAN.findall(text[end : block.start()]):
            is_file = Path(span).suffix and " " not in span and (ROOT / span).parent.is_dir()
            path = span if is_file else path
        end = block.end()
        if block[1] in ("python", "diff"):
            yield path, block[1], block[2]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield path and anchor of each link that stays in the project; either may be empty."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a command in a folder, without what tests have for themselves."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    return others | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DIFFRACTORY_DATA": str(folder / "data"),
        "TMPDIR": str(folder / "tmp"),
    }


def run(folder: Path, *command: str, **more: str) -> str:
    """Run a command in a folder; return its output, or fail with it."""
    (folder / "tmp").mkdir(exist_ok=True)
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder) | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr
