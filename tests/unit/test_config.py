"""Every wrong key or type is refused by name, with the nearest known key."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from diffractory.config import in_order, validate
from diffractory.errors import InputError
from diffractory.simulate.crystal import SYMBOLS

ROOT = Path(__file__).parents[2]
DEFAULTS = ROOT / "config/config.yaml"
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
CONFIG = yaml.safe_load(DEFAULTS.read_text())


def changed(path: str, value) -> dict:
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    section = config
    for key in parents:
        section = section[key]
    section[last] = value
    return config


@pytest.mark.parametrize("content", ["- seed: 1", "seed", "3"])
def test_a_file_without_keys_is_refused(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=f"in place of keys with values: correct {path}"):
        validate(yaml.safe_load(content), SCHEMA, path)


def test_defaults_are_valid():
    validate(CONFIG, SCHEMA, DEFAULTS)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("symetry", {}, "unknown config key symetry: did you mean symmetry?"),
        (
            "symmetry.random_forest.n_estimatrs",
            10,
            "unknown config key symmetry.random_forest.n_estimatrs: "
            "did you mean symmetry.random_forest.n_estimators?",
        ),
        (
            "simulate.n_estimators",
            10,
            "unknown config key simulate.n_estimators: "
            "did you mean symmetry.random_forest.n_estimators?",
        ),
        ("qqq", 1, "unknown config key qqq: config/config.yaml lists every key"),
        ("simulate.thicknesses", 200, "config key simulate.thicknesses must be of type array"),
        ("simulate.thicknesses", [], "config key simulate.thicknesses must be a list of 1"),
        ("simulate.thicknesses", [-1], "simulate.thicknesses.0 must be greater than 0, not -1"),
        ("simulate.g_max", "1.5", "simulate.g_max must be of type number, not '1.5'"),
        ("simulate.engine", "blch", r"simulate.engine must be one of \['bloch', 'kinematic'\]"),
        ("split.test", 1.5, "split.test must be at most 1, not 1.5"),
        ("datasets.folder.pth", "x", "unknown config key datasets.folder.pth: did you mean"),
        ("datasets.c2db", {"source": "c2db"}, "datasets.c2db needs either path or base_url"),
        ("datasets.mine", {"source": "web"}, "datasets.mine.source must be one of"),
        ("dataset", "perov5", "'perov5', unknown: did you mean perov_5?"),
        ("structure_2d.dataset", "layer", "structure_2d.dataset names 'layer', .* mean layers?"),
        ("structure_2d.patterns.radiation", "neutron", r"one of \['x_ray', 'electron'\]"),
        ("structure_2d.perturb.cells", [3], "perturb.cells must be a list of 2 or more"),
        ("structure_2d.dd2d.network.width", 100, "dd2d.network.width must be a multiple of 8"),
        ("structure_2d.conditions", {"turned": [{"rotate": {}}]}, "unknown .*turned.0.rotate"),
    ],
)
def test_wrong_key_is_named(path, value, sentence):
    with pytest.raises(InputError, match=sentence):
        validate(changed(path, value), SCHEMA, DEFAULTS)


def test_debye_waller_factors_go_by_the_symbols_of_elements():
    schema = yaml.safe_load(SCHEMA.read_text())
    pattern = re.compile(schema["$defs"]["element_or_default"]["pattern"])
    letters = [chr(i) for i in range(ord("A"), ord("Z") + 1)]
    words = [a + b for a in letters for b in ("", *map(str.lower, letters))]
    assert {word for word in words if pattern.match(word)} == set(SYMBOLS)
    validate(changed("simulate.debye_waller", {"default": 0.5, "O": 0.8}), SCHEMA, DEFAULTS)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("debye_waller", {"default": 0.5, "Ox": 1}, "'Ox' is not the symbol of an element"),
        ("debye_waller", {"O": 0.8}, "simulate.debye_waller.default is missing"),
        ("foil_tilt", [10.0], "simulate.foil_tilt must be a list of 2 or more"),
        ("foil_tilt", [90.0, 0.0], "simulate.foil_tilt.0 must be at most 60"),
        ("device", "gpu", r"simulate.device must be one of \['cpu', 'cuda'\]"),
    ],
)
def test_wrong_setting_of_the_simulation_is_named(key, value, sentence):
    with pytest.raises(InputError, match=sentence):
        validate(changed(f"simulate.{key}", value), SCHEMA, DEFAULTS)


def test_missing_key_is_named():
    config = copy.deepcopy(CONFIG)
    del config["simulate"]["g_max"]
    with pytest.raises(InputError, match=r"config key simulate\.g_max is missing"):
        validate(config, SCHEMA, DEFAULTS)


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_other_scales_only_override_known_keys():
    known = set(leaves(CONFIG))
    scales = [path for path in (ROOT / "config").glob("*.yaml") if path != DEFAULTS]
    assert {path.stem for path in scales} >= {"ci", "desk", "bench", "paper"}
    for path in scales:
        overrides = yaml.safe_load(path.read_text())
        assert overrides["scale"] == path.stem
        whole = copy.deepcopy(CONFIG)
        # data sets of their own source, and the names of ablations, are free
        datasets = overrides.get("datasets", {})
        own = [name for name, entry in datasets.items() if "source" in entry]
        whole["datasets"] |= {name: datasets.pop(name) for name in own}
        for study in ("symmetry", "structure_2d"):
            whole[study]["ablations"] = overrides[study].pop("ablations", {})
        assert set(leaves(overrides)) <= known | {"datasets"}, path.name
        validate(whole, SCHEMA, DEFAULTS)


def test_every_value_of_the_defaults_has_a_comment():
    lines = [line for line in DEFAULTS.read_text().splitlines() if line.split("#")[0].strip()]
    assert [line for line in lines if not line.endswith(":") and "#" not in line] == []


@pytest.mark.parametrize(
    ("name", "ablation", "sentence"),
    [
        ("deep", {"of": "pe_ag_gmoe", "network": {"n_layer": 2}}, "ablations.deep.network.n_layer"),
        ("deep", {"of": "pe_ag_gmoe", "network": {"width": 8}}, "ablations.deep.network.width"),
        ("deep", {"of": "ours", "training": {"epochs": 0}}, "ablations.deep.training.epochs"),
        ("deep", {"of": "resnet"}, "ablations.deep.of must be one of"),
        ("deep", {"network": {"n_layers": 2}}, "ablations.deep.of is missing"),
        ("ours", {"of": "ours"}, "neither dataset nor a model"),
        ("../deep", {"of": "ours"}, "neither dataset nor a model"),
    ],
)
def test_bad_ablation_is_refused_by_name(name, ablation, sentence):
    config = changed("symmetry.ablations", {name: ablation})
    with pytest.raises(InputError, match=re.escape(sentence)):
        validate(config, SCHEMA, DEFAULTS)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("ablations", {"deep": {"n_layer": 2}}, "unknown config key structure_2d.ablations.deep"),
        ("ablations", {"../deep": {"n_layers": 2}}, "'../deep'"),
        ("ablations", {"dd2d": {"n_layers": 2}}, "'dd2d'"),
        ("ablations", {"deep_perturbed": {"n_layers": 2}}, "'deep_perturbed'"),
        ("conditions", {"as_simulated": []}, "'as_simulated'"),
    ],
)
def test_bad_name_in_the_structure_2d_study_is_refused(key, value, sentence):
    """Those of networks are taken, and what ends in perturbed is of the perturbed patterns."""
    with pytest.raises(InputError, match=re.escape(sentence)):
        validate(changed(f"structure_2d.{key}", value), SCHEMA, DEFAULTS)


def test_ablation_replaces_some_keys():
    ablation = {"of": "pe_ag_gmoe", "network": {"edge_rule": "top_k", "edge_threshold": 8}}
    validate(changed("symmetry.ablations", {"few_edges": ablation}), SCHEMA, DEFAULTS)


def test_order_of_keys_is_that_of_the_defaults(tmp_path):
    defaults = tmp_path / "config.yaml"
    defaults.write_text("b: {y: 1, x: 2}\na: [3]\nc: 4\n")
    config = {"z": {"q": 1, "p": 2}, "a": [{"n": 1, "m": 2}], "b": {"w": 0, "x": 5, "y": 6}}
    ordered = in_order(config, defaults)
    assert ordered == config
    assert list(ordered) == ["b", "a", "z"]
    assert list(ordered["b"]) == ["y", "x", "w"]
    assert list(ordered["z"]) == ["p", "q"]
    assert list(ordered["a"][0]) == ["n", "m"]
