"""m2df: show a camera an action one to five times and recognise it from then on.

Bundle, support bank, query to prediction, on numpy and one inference engine; no PyTorch.

    >>> import m2df_runtime as m2df
    >>> model = m2df.load()
    >>> bank = m2df.SupportBank.of(model, "actions")
    >>> matcher = m2df.Matcher(model, bank)
    >>> matcher.predict("clip.mp4").label
    'clap'

The names below load on first use: importing this package brings in neither numpy nor an engine.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model as Model
    from m2df_runtime.backends.model import load as load
    from m2df_runtime.bank.bank import SupportBank as SupportBank
    from m2df_runtime.bundle.prompt_texts import LabelRules as LabelRules
    from m2df_runtime.clips.source import FrameSource as FrameSource
    from m2df_runtime.errors import CheckFailed as CheckFailed
    from m2df_runtime.errors import ClipError as ClipError
    from m2df_runtime.errors import EnvironmentMissing as EnvironmentMissing
    from m2df_runtime.errors import InputError as InputError
    from m2df_runtime.errors import M2dfError as M2dfError
    from m2df_runtime.match.matcher import Matcher as Matcher
    from m2df_runtime.match.results import ClassScore as ClassScore
    from m2df_runtime.match.results import Prediction as Prediction
    from m2df_runtime.show.explain import explain as explain
    from m2df_runtime.stream.events import Event as Event
    from m2df_runtime.stream.events import EventRules as EventRules
    from m2df_runtime.stream.stream import Stream as Stream
    from m2df_runtime.teaching.support import Support as Support
    from m2df_runtime.teaching.watch import SupportWatch as SupportWatch

# Whoever loads ONNX Runtime in this process later: its builds from PyPI write a device's id and a database of
# events into the user's cache, and try to send them, unless this is set before it loads.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"

_HOMES = {
    "CheckFailed": "errors",
    "ClassScore": "match.results",
    "ClipError": "errors",
    "EnvironmentMissing": "errors",
    "Event": "stream.events",
    "EventRules": "stream.events",
    "FrameSource": "clips.source",
    "InputError": "errors",
    "LabelRules": "bundle.prompt_texts",
    "M2dfError": "errors",
    "Matcher": "match.matcher",
    "Model": "backends.model",
    "Prediction": "match.results",
    "Stream": "stream.stream",
    "Support": "teaching.support",
    "SupportBank": "bank.bank",
    "SupportWatch": "teaching.watch",
    "explain": "show.explain",
    "load": "backends.model",
}

__all__ = [
    "CheckFailed",
    "ClassScore",
    "ClipError",
    "EnvironmentMissing",
    "Event",
    "EventRules",
    "FrameSource",
    "InputError",
    "LabelRules",
    "M2dfError",
    "Matcher",
    "Model",
    "Prediction",
    "Stream",
    "Support",
    "SupportBank",
    "SupportWatch",
    "explain",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found  # the next use does not come here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
