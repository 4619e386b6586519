"""The conda files, the dependencies and the constraints say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = {
    canonicalize_name(name): pin
    for name, pin in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "envs/constraints.txt").read_text(), re.MULTILINE
    )
}
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_is_pinned_within_its_range():
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    for requirement in map(Requirement, PROJECT["dependencies"] + extras):
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), requirement


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_conda_file_has_the_pins_of_the_constraints(path):
    *conda, pip = yaml.safe_load(path.read_text())["dependencies"]
    assert conda == ["python =3.11", "pip"]
    for entry in pip["pip"]:
        name, pin = entry.split("==")
        assert PINS[canonicalize_name(name)] == pin, entry
    assert path.with_suffix(".post-deploy.sh").resolve().name == "install.sh"


def test_every_rule_names_a_conda_file_that_exists():
    for rules in (ROOT / "workflow/rules").glob("*.smk"):
        text = rules.read_text()
        named = re.findall(r'conda:\s+"([^"]+)"', text)
        assert len(named) == len(re.findall(r"^ *rule ", text, re.MULTILINE)), rules.name
        assert all((rules.parent / path).resolve() in ENVIRONMENTS for path in named)


def test_rule_script_and_log_share_one_name():
    for rules in (ROOT / "workflow/rules").glob("*.smk"):
        for name, body in re.findall(
            r"^ *rule (\w+):\n(.*?)(?=^ *rule |\Z)", rules.read_text(), re.M | re.S
        ):
            assert f'"../scripts/{name}.py"' in body
            assert re.search(rf'log:\s+"logs/{name}[./]', body), name
            assert (ROOT / f"workflow/scripts/{name}.py").is_file()
