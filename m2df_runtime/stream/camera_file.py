"""`cameras.yaml`: which cameras are watched and how, checked as a whole before any of them is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import FrameSource
from m2df_runtime.errors import InputError, printable, shortened
from m2df_runtime.stream.events import EventRules
from m2df_runtime.stream.sources.addresses import checked_address, filled_in
from m2df_runtime.stream.sources.device import DeviceFrames
from m2df_runtime.stream.sources.file import FileFrames
from m2df_runtime.stream.sources.live import SourceState
from m2df_runtime.stream.sources.network import NetworkFrames
from m2df_runtime.stream.sources.timed import TimedFrames
from m2df_runtime.stream.yaml_lines import Place, YamlLines, read_yaml
from m2df_runtime.stream.zones import Zone, checked_zone

_LONGEST_NAME = 100  # characters
_TOLD = 5  # problems that are told at once
_KINDS = ("url", "device", "file")
_SAID = {
    "model_type": "keys with their values are wanted, such as name: door",
    "dict_type": "names with their values are wanted, such as door: [0, 0, 0.5, 1]",
    "list_type": "a list is wanted, in brackets or with one dash a line",
    "string_type": "text is wanted; put it into quotes",
}


@dataclass(frozen=True)
class Camera:
    """A camera as its file describes it, with what it takes from the defaults.

    Attributes:
        name: What messages and events call it.
        source: Its address, its number on this machine, or the path of a recording.
        window: Seconds of a window; None takes the length of the support clips.
        stride: Seconds from one to the next; None takes a quarter of the window.
        zones: Parts of its picture that are watched each by itself; without any, the whole is.
        rules: When windows become an event.
        labels: Classes whose events are told; None tells all.
    """

    name: str
    source: str | int | Path
    window: float | None
    stride: float | None
    zones: dict[str, Zone]
    rules: EventRules
    labels: tuple[str, ...] | None

    def frames(self, on_state: Callable[[SourceState], None] | None = None) -> TimedFrames:
        """What it sees, to be read; see `LiveFrames` for `on_state`.

        Raises:
            InputError: A variable of its address is no longer in the environment.
            ClipError: The recording cannot be opened.
        """
        if isinstance(self.source, Path):
            return FileFrames(self.recording())
        if isinstance(self.source, int):
            return DeviceFrames(self.source, on_state, name=self.name)
        return NetworkFrames(self.source, on_state, name=self.name)

    def recording(self) -> FrameSource:
        """The recording that stands in a camera's place, called by its name.

        Raises:
            ClipError: It cannot be opened.
        """
        assert isinstance(self.source, Path)
        recording = open_source(self.source)
        recording.name = self.name
        return recording


def read_cameras(path: Path) -> list[Camera]:
    """The cameras of a file that are enabled; paths in it are relative to its folder.

    Raises:
        InputError: It cannot be read or has mistakes, of which the first few are named, each with its line; or no
            camera in it is enabled.
    """
    data, lines = read_yaml(path)
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        problems = [_problem(one["type"], one["msg"], one["loc"], lines) for one in error.errors(include_url=False)]
        raise _refused(path, problems) from None
    cameras: list[Camera] = []
    problems = [*_repeated(file, lines)]
    for number, entry in enumerate(file.cameras):
        if not entry.enabled:
            continue
        try:
            cameras.append(_camera(entry, file.defaults, path.parent))
        except InputError as error:
            problems.append(f"{lines.where(('cameras', number))}, {entry.name}: {error}")
    if problems:
        raise _refused(path, problems)
    if not cameras:
        raise InputError(f"{path}: no camera is enabled", "set enabled: true, or leave it out")
    return cameras


def _automatic(value: object) -> object:
    return None if value == "auto" else value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Automatic = Annotated[Seconds | None, BeforeValidator(_automatic)]


class _Settings(BaseModel):
    """What cameras may have in common; None takes the default of `Stream` and `EventRules`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    window: Automatic = None
    stride: Seconds | None = None
    labels: list[str] | None = None
    enter: float | None = None
    leave: float | None = None
    min_duration: float | None = None
    merge_gap: float | None = None
    max_duration: float | None = None
    cooldown: float | None = None
    update_every: float | None = None


class _Entry(_Settings):
    name: str = Field(min_length=1, max_length=_LONGEST_NAME)
    url: str | None = None
    device: int | None = Field(None, ge=0)
    file: str | None = None
    zones: dict[str, list[float]] = {}
    enabled: bool = True

    @model_validator(mode="after")
    def _one_source(self) -> _Entry:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"it has {' and '.join(given) or 'no source'}; give one of {', '.join(_KINDS)}")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    defaults: _Settings = _Settings()
    cameras: list[_Entry] = Field(min_length=1)


def _camera(entry: _Entry, defaults: _Settings, folder: Path) -> Camera:
    """An entry that is enabled, with what it takes from the defaults. Raises InputError."""

    def chosen(name: str) -> Any:  # noqa: ANN401 - of any field
        return getattr(entry if name in entry.model_fields_set else defaults, name)

    if printable(entry.name) != entry.name or entry.name != entry.name.strip():
        raise InputError("a name begins and ends with a character that is seen, and holds no control characters")
    source: str | int | Path
    if entry.url is not None:
        source = checked_address(entry.url)
        filled_in(source)  # now, and not when the others are watched already
    else:
        source = folder / entry.file if entry.file is not None else cast(int, entry.device)
    rules = {one.name: chosen(one.name) for one in fields(EventRules)}
    return Camera(
        entry.name,
        source,
        chosen("window"),
        chosen("stride"),
        {name: checked_zone(name, numbers) for name, numbers in entry.zones.items()},
        EventRules(**{name: value for name, value in rules.items() if value is not None}),
        None if chosen("labels") is None else tuple(chosen("labels")),
    )


def _repeated(file: _File, lines: YamlLines) -> Iterator[str]:
    counted = Counter(entry.name for entry in file.cameras)
    for name, count in counted.items():
        if count > 1:
            places = [number for number, entry in enumerate(file.cameras) if entry.name == name]
            yield f"{lines.where(('cameras', places[1], 'name'))}: {count} cameras are called {name}"


def _problem(kind: str, message: str, place: Place, lines: YamlLines) -> str:
    """One mistake: where it is, and what."""
    if kind == "extra_forbidden":
        known = _Settings if place[0] == "defaults" else _File if len(place) == 1 else _Entry
        near = get_close_matches(str(place[-1]), known.model_fields, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known.model_fields)}"
        return f"{lines.where(place)}: no such key; {hint}"
    if kind == "missing":
        return f"{lines.where(place[:-1])}: {place[-1]} is missing"
    said = _SAID.get(kind) or message.removeprefix("Value error, ").removeprefix("Input ")
    return f"{lines.where(place)}: {said}"


def _refused(path: Path, problems: list[str]) -> InputError:
    more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
    return InputError(f"{path}: {'; '.join(shortened(one) for one in problems[:_TOLD])}{more}")
