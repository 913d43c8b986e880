"""Places of files in a recipe: relative to the working directory, absolute once they are read.

So a run's own recipe means the same wherever it is resumed or evaluated. What goes with the weights has names
alone: a checkpoint is passed on, and says nothing of the machine it was trained on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, get_args

from pydantic import AfterValidator

from m2df_train.public_benchmarks import Spelling

_FOLDER = "local-dir:"  # open_clip's name of a model that is a folder


def absolute(path: str) -> str:
    """A path from the working directory; `~` is the home folder."""
    return os.fspath(Path(os.path.expanduser(path)).absolute())


def is_weight_file(pretrained: str) -> bool:
    """Whether weights are a file. Tags of open_clip are words without a dot."""
    return os.sep in pretrained or bool(Path(pretrained).suffix)


def model_name(model: str) -> str:
    """A model without the place of its folder."""
    return _FOLDER + Path(model.removeprefix(_FOLDER)).name if model.startswith(_FOLDER) else model


def weights_name(pretrained: str) -> str:
    """Weights without the place of their file."""
    return Path(pretrained).name if is_weight_file(pretrained) else pretrained


def _labels(value: str) -> str:
    return value if value in get_args(Spelling) else absolute(value)


def _model(value: str) -> str:
    return _FOLDER + absolute(value.removeprefix(_FOLDER)) if value.startswith(_FOLDER) else value


def _weights(value: str) -> str:
    return absolute(value) if is_weight_file(value) else value


Place = Annotated[str, AfterValidator(absolute)]
Labels = Annotated[str, AfterValidator(_labels)]
Model = Annotated[str, AfterValidator(_model)]
Weights = Annotated[str, AfterValidator(_weights)]
