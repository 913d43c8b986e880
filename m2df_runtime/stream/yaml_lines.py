"""YAML as plain data with the line of every key, so that a message can say where a mistake is.

Written by people and small: what could make it large in memory, aliases and depth, is refused, as are keys that stand
twice, of which others read the last without a word.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from m2df_runtime.errors import InputError, first_line
from m2df_runtime.regular_files import open_regular

_LARGEST = 1 << 20  # bytes
_DEEPEST = 10  # levels

Place = tuple[int | str, ...]
"""Keys and numbers of list items from the top to a value."""


class YamlLines:
    """Where the values of a file stand, and how messages name them."""

    def __init__(self) -> None:
        self._lines: dict[Place, int] = {(): 1}

    def add(self, place: Place, line: int) -> None:
        self._lines[place] = line

    def where(self, place: Place) -> str:
        """`line 7, cameras[0].window`: of the nearest place that the file has."""
        while place not in self._lines:
            place = place[:-1]
        path = ""
        for part in place:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
        return f"line {self._lines[place]}" + (f", {path}" if path else "")


def read_yaml(path: Path) -> tuple[object, YamlLines]:
    """A file's data, and where it stands.

    Raises:
        InputError: It cannot be read, is no YAML, or has what is not read here.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "check the path") from None
    if len(data) > _LARGEST:
        raise InputError(f"{path}: larger than {_LARGEST >> 20} MiB", "is it the right file?")
    try:
        loader = _Loader(data.decode("utf-8-sig"))
        try:
            node = loader.get_single_node()
            lines = YamlLines()
            _note(node, (), lines, loader)
            return None if node is None else loader.construct_document(node), lines
        finally:
            loader.dispose()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text", "save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, in which a password may stand
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: {line}{error.problem or 'not YAML'}") from None
    except (yaml.YAMLError, ValueError) as error:  # of characters that may not stand in YAML; a date without such a day
        raise InputError(f"{path}: not YAML: {first_line(error)}") from None


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's safe loader without aliases, and of bounded depth."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - as PyYAML has it
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not read; use defaults", event.start_mark)
        if self._depth == _DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {_DEEPEST} levels", event.start_mark)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _note(node: yaml.Node | None, place: Place, lines: YamlLines, loader: _Loader) -> None:
    """Take down the line of everything below a node. Raises ConstructorError for a key that stands twice."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines.add((*place, number), item.start_mark.line + 1)
            _note(item, (*place, number), lines, loader)
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key_node, value in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "<< is not read; use defaults", key_node.start_mark)
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = "a key that is no text; put it into quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                problem = f"{key} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
            lines.add((*place, key), key_node.start_mark.line + 1)
            _note(value, (*place, key), lines, loader)
