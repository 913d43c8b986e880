"""Arrays that come from outside, checked before an engine fails on them in its own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from m2df_runtime.backends import DeviceTensor
from m2df_runtime.errors import InputError

AnyTensor = TypeVar("AnyTensor")


def checked(what: str, array: AnyTensor, dtype: str, **axes: int | None) -> AnyTensor:
    """The array itself, if it has this type and shape.

    Args:
        what: What messages call it.
        array: A numpy array, or a tensor on a device.
        dtype: The element type it must have.
        axes: Names and sizes of its axes in their order; None is any size from 1.

    Raises:
        InputError: It is another thing, or has another type or shape; says what is expected and what was given.
    """
    if isinstance(array, np.ndarray | DeviceTensor):
        fits = len(array.shape) == len(axes) and all(
            size == wanted if wanted is not None else size > 0
            for size, wanted in zip(array.shape, axes.values(), strict=True)
        )
        if fits and array.dtype == dtype:
            return array
        given = f"{array.dtype} {[*array.shape]}"
    else:
        given = f"a {type(array).__name__}"
    names = ", ".join(name if size is None else f"{name} = {size}" for name, size in axes.items())
    raise InputError(f"{what}: expected {dtype} [{names}], given {given}")


def finite_rows(outputs: Mapping[str, object]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows of all outputs hold finite numbers only; outputs on a device count as finite."""
    rows = [
        np.isfinite(output).reshape(len(output), -1).all(axis=1)
        for output in outputs.values()
        if isinstance(output, np.ndarray)
    ]
    return np.logical_and.reduce(rows) if rows else np.ones(0, np.bool_)


def refuse_infinite(inputs: Mapping[str, object]) -> None:
    """Refuse numpy arrays that hold numbers which are not finite; raises InputError with the name of the first."""
    for name, array in inputs.items():
        if isinstance(array, np.ndarray) and not np.isfinite(array).all():
            raise InputError(f"{name}: hold numbers that are not finite", "make them again")
