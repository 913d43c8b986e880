"""Options from the command line over those of a file: `--set head.options.otam.lambda=0.1`.

Values are YAML, so they carry their type. Nothing is refused here that the model of the options refuses
later; the problems found here are returned, so that both kinds are reported together.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticCustomError


def merged(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `defaults`, mappings merged at every depth; lists and scalars are replaced whole."""
    result = copy.deepcopy(dict(defaults))
    for key, value in values.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def override(data: Mapping[str, Any], settings: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Apply `KEY.KEY=VALUE` settings in order to nested options.

    Args:
        data: The options as read from a file.
        settings: What the user set; the later one wins.

    Returns:
        The options with everything that could be set, and one problem per setting that could not.
    """
    result = copy.deepcopy(dict(data))
    problems = []
    for setting in settings:
        problem = _apply(result, setting)
        if problem:
            problems.append(f"--set {setting}: {problem}")
    return result, problems


def _apply(data: dict[str, Any], setting: str) -> str | None:
    """Set one value in place; returns what is wrong with the setting, if anything is."""
    path, equals, raw = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return "write it as KEY.KEY=VALUE"
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        return f"the value is not YAML: {str(error).splitlines()[0]}"
    section: Any = data
    for place, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            return f"{'.'.join(keys[:place])} is a value and has no options"
    section[keys[-1]] = value
    return None


def nested_problems(error: ValidationError, where: str = "") -> PydanticCustomError:
    """The errors of options that a validator checks itself, for `problems` to report each by its full key.

    Args:
        error: What the model of those options found.
        where: Key of the options in the model that validates them; empty where they are that model's own.
    """
    return _nested([(_joined(where, key), text) for key, text in _found(error)])


def nested_problem(key: str, text: str) -> PydanticCustomError:
    """One problem of a section below, found by the model that holds it."""
    return _nested([(key, text)])


def problems(error: ValidationError) -> list[str]:
    """Every error of a model, each beginning with the key it is about."""
    return [f"{key}: {text}" if key else text for key, text in _found(error)]


def _nested(found: list[tuple[str, str]]) -> PydanticCustomError:
    return PydanticCustomError("nested", "{text}", {"text": found[0][1], "found": found})


def _found(error: ValidationError) -> list[tuple[str, str]]:
    """Key and message of every error."""
    found = []
    for entry in error.errors():
        key = ".".join(map(str, entry["loc"]))
        if entry["type"] == "nested":
            found += [(_joined(key, below), text) for below, text in entry["ctx"]["found"]]
        else:
            found.append((key, entry["msg"].removeprefix("Value error, ")))
    return found


def _joined(*keys: str) -> str:
    return ".".join(filter(None, keys))
