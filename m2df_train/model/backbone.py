"""The CLIP backbone: any open_clip model as one image tower and one text tower.

Embeddings leave here un-normalised, as both methods need them (the cosines downstream carry their
own epsilon). Preprocessing constants come from open_clip with the weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from m2df_runtime.errors import InputError, M2dfError, first_line
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.model.hub import LOCAL_HINT, on_this_machine, server_of, why_unreachable

CONTEXT_LENGTH = 77
VOCABULARY = 49408
CONFIGS = Path(__file__).parent / "configs"

_torchvision_ops: list[torch.library.Library] = []


def import_open_clip() -> ModuleType:
    """The `open_clip` module, importable also where torchvision's compiled operators are not.

    A CPU-only torch beside the CUDA build of torchvision cannot load the latter's operators, and
    torchvision then fails to import because it annotates `nms`. CLIP uses none of them, so their
    schemas are declared and the import repeated. Elsewhere nothing is changed.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_torchvision_ops()
    with _without_transformers():
        import open_clip

    from m2df_train.model import towers, two_stream  # noqa: F401 - registers the small towers with timm

    if CONFIGS not in open_clip.factory._MODEL_CONFIG_PATHS:
        open_clip.add_model_config(CONFIGS)
    return open_clip


@contextmanager
def _without_transformers() -> Iterator[None]:
    """Import as where `transformers` is not installed.

    open_clip takes it where it finds it (PEFT needs it), for text towers that m2df refuses: 1.6 s of every start.
    """
    name = "transformers"
    loaded = name in sys.modules
    if not loaded:
        sys.modules[name] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        yield
    finally:
        if not loaded:
            del sys.modules[name]


def _declare_torchvision_ops() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_ops.append(library)  # a registration lives as long as its Library
    import torchvision  # noqa: F401


class Backbone(nn.Module):
    """Image and text tower of a CLIP.

    Args:
        clip: The open_clip model.
        name: Its open_clip name, for the record.
        config: Its open_clip configuration, from which an empty copy can be rebuilt.

    Attributes:
        appearance_dim: How many of the D numbers show how a frame looks (A), the last ones.
        frames_together: The image tower works on so many frames in a row; a clip has a multiple of them.
    """

    def __init__(self, clip: nn.Module, name: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.clip = clip
        self.name = name
        self.config = config
        preprocess = import_open_clip().get_model_preprocess_cfg(clip)
        size = preprocess["size"]
        self.image_size = int(size if isinstance(size, int) else size[0])
        self.mean: tuple[float, float, float] = tuple(preprocess["mean"])
        self.std: tuple[float, float, float] = tuple(preprocess["std"])
        self.interpolation: str = preprocess["interpolation"]
        self.dim = int(config["embed_dim"])
        trunk = getattr(clip.visual, "trunk", None)
        self.appearance_dim = int(getattr(trunk, "appearance_dim", 0))
        self.frames_together = int(getattr(trunk, "frames_together", 1))

    def clip_problem(self, clip: ClipSpec) -> str | None:
        """Why the image tower does not take clips of a spec; None where it does."""
        if clip.size != self.image_size:
            return f"clip.size is {clip.size}, the image tower of {self.name} takes {self.image_size}"
        together = self.frames_together
        if clip.frames % together:
            return f"clip.frames is {clip.frames}, the image tower of {self.name} takes a multiple of {together}"
        return None

    def visual(self, pixels: Tensor) -> Tensor:
        """Frame embeddings [N, D] of normalised pixels [N, 3, S, S]."""
        features: Tensor = self.clip.encode_image(pixels)  # type: ignore[operator]
        return features

    def visual_like_text(self, pixels: Tensor) -> Tensor:
        """The part of frame embeddings that is aligned with text: [N, D - A], without the A numbers of appearance."""
        if not self.appearance_dim:
            return self.visual(pixels)
        features: Tensor = self.clip.visual.trunk.motion(pixels)  # type: ignore[union-attr, operator]
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text embeddings [P, D] of tokens [P, 77]; the last A numbers are 0."""
        embeddings: Tensor = self.clip.encode_text(tokens)  # type: ignore[operator]
        return embeddings

    @property
    def log_scale(self) -> Tensor:
        """Logarithm of CLIP's learned multiplier of cosines, the trained parameter."""
        scale = self.clip.logit_scale
        assert isinstance(scale, Tensor)
        return scale

    @property
    def logit_scale(self) -> Tensor:
        """CLIP's learned multiplier of cosines (not its logarithm)."""
        return self.log_scale.exp()

    def encode_frames(self, frames: Tensor, clip: ClipSpec, *, like_text: bool = False) -> Tensor:
        """Features of uint8 frames [..., S, S, 3] as `load_clip` returns them, on the backbone's device.

        Args:
            frames: The frames.
            clip: How pixels are normalised.
            like_text: Leave the numbers of appearance out, and the time that they take.

        Returns:
            [..., D], or [..., D - A] of `visual_like_text`.
        """
        encode = self.visual_like_text if like_text else self.visual
        frames = frames.to(self.log_scale.device)
        return encode(normalised_pixels(frames, clip)).unflatten(0, frames.shape[:-3])


def normalised_pixels(frames: Tensor, clip: ClipSpec) -> Tensor:
    """uint8 frames [..., S, S, 3] to pixels [N, 3, S, S] as the image tower takes them, leading axes flattened."""
    pixels = frames.flatten(0, -4).permute(0, 3, 1, 2).float() / 255.0
    mean = pixels.new_tensor(clip.mean).view(1, 3, 1, 1)
    std = pixels.new_tensor(clip.std).view(1, 3, 1, 1)
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def load_backbone(model: str, pretrained: str | None = None) -> Backbone:
    """Create a CLIP, with weights if any are named.

    Args:
        model: open_clip model name, or `local-dir:PATH` or `hf-hub:ORG/NAME` (these bring their weights).
        pretrained: open_clip weight tag or path of a weight file.

    Raises:
        InputError: Unknown model, weights that cannot be had or are a program, or a tokenizer other than CLIP's.
    """
    if pretrained and is_torchscript(Path(pretrained)):
        raise InputError(
            f"{pretrained}: a TorchScript archive, which is a program, as OpenAI publishes its CLIPs; "
            "m2df reads weights only",
            "give the same weights as open_clip publishes them: a tag, or an open_clip_model.safetensors",
        )
    open_clip = import_open_clip()
    server = server_of(open_clip, model, pretrained)
    unreachable = None if server is None else why_unreachable(server)
    source = f"{model} with weights {pretrained!r}" if pretrained else model
    with _without_warnings(), on_this_machine() if unreachable else nullcontext():
        try:
            config = open_clip.get_model_config(model)
            if config is not None:
                _require_clip_tokenizer(model, config)
                fresh = not pretrained and (CONFIGS / f"{model}.json").is_file()
                clip = open_clip.create_model(model, pretrained=pretrained, load_weights=True, pretrained_image=fresh)
        except M2dfError:
            raise
        except Exception as error:  # open_clip raises whatever its readers and the hub client raise
            if unreachable:
                problem = f"not on this machine, and cannot be fetched ({unreachable})"
                raise InputError(f"{source}: {problem}", LOCAL_HINT) from None
            hint = "weights are a tag of open_clip.list_pretrained() or a local file"
            raise InputError(f"{source}: {first_line(error)}", hint) from None
    if config is None:
        raise InputError(f"{model}: open_clip knows no model of that name", "see open_clip.list_models()")
    backbone = Backbone(clip.eval(), model, config)
    if fresh and backbone.appearance_dim:
        with torch.no_grad():
            clip.text_projection[:, -backbone.appearance_dim :] = 0.0  # texts say nothing of it
    return backbone


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive rather than a file of weights."""
    if not file.is_file() or not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def rebuild_backbone(name: str, config: dict[str, Any]) -> Backbone:
    """An empty backbone of a recorded configuration; its weights come from a checkpoint.

    Raises:
        InputError: A configuration open_clip cannot build, or a tokenizer other than CLIP's.
    """
    open_clip = import_open_clip()
    unique = "m2df-" + hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{unique}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)
        try:
            _require_clip_tokenizer(name, config)  # such a text tower would be fetched from a hub, too
            with _without_warnings():
                clip = open_clip.create_model(unique, pretrained=None)
        except InputError:
            raise
        except Exception as error:  # a damaged configuration fails anywhere in open_clip
            raise InputError(f"{name}: its recorded configuration builds no CLIP: {first_line(error)}") from None
        finally:
            open_clip.factory._MODEL_CONFIG_PATHS.remove(Path(folder))
    return Backbone(clip.eval(), name, config)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence open_clip on models without pretrained weights: here that is meant, and errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _require_clip_tokenizer(model: str, config: dict[str, Any]) -> None:
    text = config.get("text_cfg", {})
    other = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    length = text.get("context_length", CONTEXT_LENGTH)
    vocabulary = text.get("vocab_size", VOCABULARY)
    if other or length != CONTEXT_LENGTH or vocabulary != VOCABULARY:
        raise InputError(
            f"{model}: its text tower reads {other or f'{vocabulary} tokens'} with context {length}; "
            f"m2df needs CLIP's BPE with context {CONTEXT_LENGTH}",
            "take a CLIP whose open_clip configuration uses the default tokenizer",
        )
