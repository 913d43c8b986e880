"""What a distance is made of: aligned frames, frame means, appearance, and a discount for being undecided.

A bundle's query graph gives the query's tokens and one number per view and class. This computes the number again,
from the tokens, the prototypes and the options of the manifest, term by term.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from m2df_runtime.bundle.manifest import Manifest
from m2df_runtime.errors import InputError
from m2df_runtime.show.soft_path import SoftPath, Wide, soft_path

_VISUAL_TEMPERATURE = 8.0  # CLIP-FSAR's p_visual = softmax(-d / 8); a constant of the method

_Weight = Annotated[float, Field(ge=0, le=1e6)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Otam(BaseModel):
    lam: float = Field(alias="lambda", ge=1e-3, le=1e6)
    bidirectional: bool


class _Appearance(BaseModel):
    dim: int = Field(default=0, ge=0)
    weight: _Weight = 0.0


class _Options(BaseModel):
    """Options that every head's matching has. Bundles older than `appearance` have none."""

    otam: _Otam
    cos_eps: _Weight
    otam_weight: _Weight
    mean_weight: _Weight
    appearance: _Appearance = _Appearance()


class _M2df(_Options):
    view_weights: tuple[_Weight, ...]


class _Fusion(BaseModel):
    mode: str = Field(pattern="^(off|combine|text)$")
    beta: _Share


class _ClipFsar(_Options):
    text_visual_fusion: _Fusion


class _TrainingFree(_Options):
    beta: _Share
    logit_scale: _Weight


_HEADS: dict[str, type[_Options]] = {"m2df": _M2df, "clip-fsar": _ClipFsar, "training-free": _TrainingFree}


@dataclass(frozen=True)
class Terms:
    """A sum, by what each part of it is.

    Attributes:
        aligned: Expected cost of the pairs of frames that are aligned.
        means: Distance of the clips' mean frames, whatever their order.
        looks: The same of what shows how a frame looks, where the image tower has numbers for it.
        undecided: Minus lambda times the entropy of the alignment: the discount for several ways that fit.
        text: Of the class's text, where it is a term of the logits.
    """

    aligned: float = 0.0
    means: float = 0.0
    looks: float = 0.0
    undecided: float = 0.0
    text: float = 0.0

    @property
    def total(self) -> float:
        """Their sum."""
        return float(sum(getattr(self, one.name) for one in fields(self)))

    def __add__(self, other: Terms) -> Terms:
        return Terms(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def times(self, factor: float) -> Terms:
        """Every part times a factor."""
        return Terms(*(factor * getattr(self, one.name) for one in fields(self)))


@dataclass(frozen=True)
class ViewParts:
    """One view's distance of a query to a class.

    Attributes:
        costs: Frame distances 1 - cos [T, T], query frames in rows.
        visits: How often the soft path aligns two frames [T, T], at most 1; the mean of both directions.
        hard: Cells of the cheapest paths, one path for each direction; empty where frames are not aligned.
        terms: What the distance is the sum of.
    """

    costs: Wide
    visits: Wide
    hard: tuple[tuple[tuple[int, int], ...], ...]
    terms: Terms


@dataclass(frozen=True)
class Matching:
    """How a bundle's query graph makes distances and logits.

    The logit of a class is `sum(view_factors * distances) + text_factor * log p_text`, up to what all classes share.

    Attributes:
        lam: Smoothing of OTAM.
        directions: 2 where OTAM is added with the roles of query and prototype swapped.
        eps: Added to the product of norms in every cosine.
        otam_weight: Weight of OTAM in a view's distance.
        mean_weight: Weight of the distance of mean frames, on OTAM's scale.
        looks: How many of the last numbers of a frame show how it looks.
        looks_weight: What a distance of 1 between them adds, shared by the views.
        view_factors: At most 0, one per view.
        text_factor: 0 where text is no term of the logits.
    """

    lam: float
    directions: int
    eps: float
    otam_weight: float
    mean_weight: float
    looks: int
    looks_weight: float
    view_factors: tuple[float, ...]
    text_factor: float

    @classmethod
    def of(cls, manifest: Manifest) -> Matching:
        """Read it from a manifest.

        Raises:
            InputError: The head is none that is known here, or an option is missing or impossible.
        """
        name, views = manifest.head.name, manifest.views
        if name not in _HEADS:
            raise InputError(f"the manifest's head is {name!r}, not {', '.join(_HEADS)}")
        try:
            options = _HEADS[name].model_validate(manifest.head.options)
        except ValidationError as error:
            first = error.errors()[0]
            option = ".".join(["head.options", *map(str, first["loc"])])
            raise InputError(f"the manifest's {option}: {first['msg'].lower()}") from None
        directions = 2 if options.otam.bidirectional else 1
        text = 0.0
        if isinstance(options, _M2df):
            factors = tuple(-weight for weight in options.view_weights)
            if len(factors) != views:
                raise InputError(f"the manifest's head.options.view_weights: {len(factors)} for {views} views")
        elif isinstance(options, _ClipFsar):
            fusion = options.text_visual_fusion
            text = {"off": 0.0, "combine": fusion.beta, "text": 1.0}[fusion.mode]
            factors = (-1.0 if fusion.mode == "off" else -(1.0 - text) / _VISUAL_TEMPERATURE,) * views
        else:
            assert isinstance(options, _TrainingFree)
            text = options.beta
            length = manifest.clip.frames * directions * (options.otam_weight + options.mean_weight)
            factors = (-(1.0 - text) * options.logit_scale / max(length, 1e-12),) * views
        looks = min(options.appearance.dim, manifest.dim - 1)
        return cls(
            options.otam.lam, directions, options.cos_eps, options.otam_weight, options.mean_weight,
            looks, options.appearance.weight, factors, text,
        )  # fmt: skip

    def parts(self, query: NDArray[Any], prototypes: NDArray[Any]) -> tuple[ViewParts, ...]:
        """What the distance of a query to a class is made of.

        Args:
            query: The query's tokens [V, T, D].
            prototypes: Of the class [V, T, D].

        Returns:
            One for each view.
        """
        wide = query.astype(np.float64), prototypes.astype(np.float64)
        return tuple(self._view(*pair, len(query)) for pair in zip(*wide, strict=True))

    def _view(self, query: Wide, prototypes: Wide, views: int) -> ViewParts:
        split = query.shape[1] - self.looks
        ours, theirs = query[:, :split], prototypes[:, :split]
        costs = 1.0 - self._cosines(ours, theirs)
        visits, terms = np.zeros_like(costs), Terms()
        hard: tuple[tuple[tuple[int, int], ...], ...] = ()
        if self.otam_weight:
            paths = [soft_path(costs, self.lam)]
            if self.directions == 2:
                paths.append(_turned(soft_path(costs.T, self.lam)))
            visits = np.mean([path.visits for path in paths], axis=0)
            hard = tuple(path.hard for path in paths)
            terms = Terms(
                aligned=self.otam_weight * sum(path.cost for path in paths),
                undecided=-self.otam_weight * self.lam * sum(path.entropy for path in paths),
            )
        whole = self.mean_weight * self.directions * len(query) * self._apart(ours, theirs)
        looks = self.looks_weight / views * self._apart(query[:, split:], prototypes[:, split:]) if self.looks else 0.0
        return ViewParts(costs, visits, hard, terms + Terms(means=whole, looks=looks))

    def _apart(self, query: Wide, prototypes: Wide) -> float:
        """1 - cosine of the mean frames of [T, D] and [T, D]."""
        return 1.0 - float(self._cosines(query.mean(axis=0)[None], prototypes.mean(axis=0)[None])[0, 0])

    def _cosines(self, x: Wide, y: Wide) -> Wide:
        lengths = np.maximum(np.linalg.norm(x, axis=1), 1e-15), np.maximum(np.linalg.norm(y, axis=1), 1e-15)
        found: Wide = x @ y.T / (np.outer(*lengths) + self.eps)
        return found


def _turned(path: SoftPath) -> SoftPath:
    """A path through the transposed costs, seen in the costs themselves."""
    return SoftPath(path.value, path.visits.T, path.cost, path.entropy, tuple((i, j) for j, i in path.hard))
