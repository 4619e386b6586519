"""Validation of the configuration, with sentences that name the key. Imports nothing heavy."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from diffractory.errors import InputError


def _dotted(path: Any) -> str:
    return ".".join(str(part) for part in path)


def _keys(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, Mapping):
            yield from _keys(value, (*prefix, key))


def _nearest(error: Any, key: str, known: list[tuple[str, ...]]) -> str:
    """Return the dotted known key that looks most like ``key``, siblings first, or ''."""
    siblings = list(error.schema["properties"])
    if close := get_close_matches(key, siblings, n=1, cutoff=0.5):
        return _dotted([*error.absolute_path, close[0]])
    by_name = {path[-1]: path for path in known}
    close = get_close_matches(key, by_name, n=1, cutoff=0.7)
    return _dotted(by_name[close[0]]) if close else ""


def _sentence(error: Any, known: list[tuple[str, ...]]) -> str:
    """Return one sentence about a ValidationError, the fields of which are typed too loosely."""
    where = _dotted(error.absolute_path)
    if error.validator == "additionalProperties":
        unknown = next(k for k in error.instance if k not in error.schema["properties"])
        hint = _nearest(error, unknown, known)
        advice = f"did you mean {hint}?" if hint else "config/config.yaml lists every key"
        return f"unknown config key {_dotted([*error.absolute_path, unknown])}: {advice}"
    if error.validator == "required":
        missing = next(k for k in error.validator_value if k not in error.instance)
        return f"config key {_dotted([*error.absolute_path, missing])} is missing"
    if error.validator == "oneOf":
        choices = " or ".join(choice["required"][0] for choice in error.validator_value)
        return f"config key {where} needs either {choices}"
    if error.validator == "pattern" and "description" in error.schema:
        return f"config key {where}: {error.instance!r} is not {error.schema['description']}"
    wanted = {
        "type": f"of type {error.validator_value}",
        "enum": f"one of {error.validator_value}",
        "minimum": f"at least {error.validator_value}",
        "maximum": f"at most {error.validator_value}",
        "exclusiveMinimum": f"greater than {error.validator_value}",
        "exclusiveMaximum": f"less than {error.validator_value}",
        "multipleOf": f"a multiple of {error.validator_value}",
        "minItems": f"a list of {error.validator_value} or more",
        "maxItems": f"a list of {error.validator_value} or fewer",
    }.get(str(error.validator))
    if wanted is None:
        return f"config key {where}: {error.message}"
    return f"config key {where} must be {wanted}, not {error.instance!r}"


def validate(config: Mapping[str, Any], schema: Path, defaults: Path) -> None:
    """Check a configuration against the schema.

    Parameters
    ----------
    config
        The merged configuration.
    schema
        JSON schema, as YAML.
    defaults
        The default configuration, which names every key.

    Raises
    ------
    InputError
        Naming the first key that is unknown (with the nearest known one), missing or wrong.
    """
    if not isinstance(config, Mapping):
        raise InputError(
            f"the configuration is {config!r:.40} in place of keys with values: correct {defaults}"
        )
    validator = Draft202012Validator(yaml.safe_load(schema.read_text(encoding="utf-8")))
    errors = list(validator.iter_errors(config))
    if errors:
        known = list(_keys(yaml.safe_load(defaults.read_text(encoding="utf-8"))))
        unknown = [e for e in errors if e.validator == "additionalProperties"]
        raise InputError(_sentence(unknown[0] if unknown else best_match(errors), known))
    datasets, generation = list(config["datasets"]), config["generation"]
    chosen = [
        ("dataset", config["dataset"], datasets),
        ("structure_2d.dataset", config["structure_2d"]["dataset"], datasets),
        *((f"generation.datasets.{n}", x, datasets) for n, x in enumerate(generation["datasets"])),
        (
            "generation.ground_state.dataset",
            generation["ground_state"]["dataset"],
            generation["datasets"],
        ),
    ]
    for key, name, names in chosen:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
            raise InputError(f"config key {key} names {name!r}, unknown: {hint}")


def in_order(config: Mapping[str, Any], defaults: Path) -> dict[str, Any]:
    """Return a configuration with its keys in the order of the default one, others after them.

    Snakemake takes the order of keys for a part of a rule's parameters; so do lists of classes.
    """
    ordered: dict[str, Any] = _in_order(
        config, yaml.safe_load(defaults.read_text(encoding="utf-8"))
    )
    return ordered


def _in_order(config: Any, defaults: Any) -> Any:
    if not isinstance(config, Mapping):
        return config
    known = defaults if isinstance(defaults, Mapping) else {}
    keys = [key for key in known if key in config] + sorted(set(config) - set(known))
    return {key: _in_order(config[key], known.get(key)) for key in keys}


def local_paths(settings: Mapping[str, Any]) -> list[str]:
    """Return the local files or folders that an entry of ``datasets`` is read from and must have.

    Files with a URL are not among them: they are downloaded where they are not there.
    """
    paths = settings.get("paths", [settings.get("path")])
    urls = zip_longest(paths, settings.get("urls", []))
    return [path for path, url in urls if path and not url]
