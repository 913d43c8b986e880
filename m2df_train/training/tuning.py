"""What of a CLIP's image tower is trained with the head, whichever head that is: nothing, adapters, or all of it.

The text tower is never trained. Adapters are low-rank additions (LoRA, arXiv 2106.09685) that are added
up with the weights when a checkpoint is written, so nothing after training knows of them.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from m2df_runtime.errors import InputError
from m2df_train.model.attention import linear_attention, packed_attention

if TYPE_CHECKING:
    from m2df_train.model.backbone import Backbone
    from m2df_train.model.heads import Head
    from m2df_train.recipe.sections import TuningRecipe

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class TunedBackbone:
    """A backbone whose image tower is prepared for training as a recipe says.

    Args:
        backbone: Changed in place; adapters begin as a tower that computes the same.
        tuning: The strategy.

    Attributes:
        backbone: The backbone, which encodes as it is trained so far.
        tower: The image tower where something of it is trained, else None.

    Raises:
        InputError: Gradient checkpointing of a tower that has none, or a tower without a layer to adapt.
    """

    def __init__(self, backbone: Backbone, tuning: TuningRecipe) -> None:
        self.backbone = backbone.requires_grad_(False)
        self._tuning = tuning
        self._lora: Any = None
        visual: nn.Module = backbone.clip.visual  # type: ignore[assignment]
        self.tower = None if tuning.strategy == "frozen" else visual
        if tuning.strategy == "full":
            visual.requires_grad_(True)
        elif tuning.strategy == "adapter":
            self._lora = _with_adapters(visual, backbone, tuning)
        if tuning.gradient_checkpointing and self.tower is not None:
            _checkpoint_gradients(visual, backbone.name)

    def train(self, *, validated: bool) -> None:
        """Set the tower to training; batch norm follows `bn_mode`, `mixed` depending on whether the first
        validation is over."""
        if self.tower is None:
            return
        self.tower.train()
        if not self._batch_statistics(validated):
            for norm in self._batch_norms():
                norm.eval()

    def _batch_statistics(self, validated: bool) -> bool:
        return self._tuning.bn_mode == "train" or (self._tuning.bn_mode == "mixed" and validated)

    def _batch_norms(self) -> list[nn.Module]:
        return [] if self.tower is None else [part for part in self.tower.modules() if isinstance(part, BATCH_NORM)]

    def statistics(self) -> list[Tensor]:
        """Running means and variances of batch norm in the tower, which training changes beside its parameters."""
        return [b for part in self._batch_norms() for b in part.buffers(recurse=False) if b.is_floating_point()]

    def plain(self) -> Backbone:
        """The backbone as any other: adapters added up with the weights, in a copy."""
        if self._lora is None:
            return self.backbone
        result = copy.copy(self.backbone)
        result._modules = dict(self.backbone._modules)
        result.clip = copy.copy(self.backbone.clip)
        result.clip._modules = dict(self.backbone.clip._modules)
        tower = copy.deepcopy(self._lora).merge_and_unload()
        packed_attention(tower)
        result.clip.visual = tower.requires_grad_(False)
        return result.eval()


class TrainedModel:
    """Head and image tower together, with as state what training changes of them.

    Args:
        head: The head.
        tuned: The backbone.
    """

    def __init__(self, head: Head, tuned: TunedBackbone) -> None:
        self.head, self.tuned = head, tuned

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        modules = [self.head] if self.tuned.tower is None else [self.head, self.tuned.tower]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def train(self, *, validated: bool) -> None:
        """Head and tower in training mode, batch norm as the recipe says."""
        self.head.train()
        self.tuned.train(validated=validated)

    def state_dict(self) -> dict[str, Tensor]:
        """The head, the trained parameters of the tower, and its statistics of batches."""
        state = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        if self.tuned.tower is not None:
            fixed = {name for name, p in self.tuned.tower.named_parameters() if not p.requires_grad}
            values = self.tuned.tower.state_dict().items()
            state |= {f"tower.{name}": value for name, value in values if name not in fixed}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            RuntimeError: It is that of another model or strategy.
        """
        odd = sorted(self.state_dict().keys() ^ state.keys())
        if odd:
            raise RuntimeError(f"{len(odd)} weights are missing or too many, the first is {odd[0]}")
        self.head.load_state_dict(_below(state, "head."))
        if self.tuned.tower is not None:
            self.tuned.tower.load_state_dict(_below(state, "tower."), strict=False)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _checkpoint_gradients(visual: nn.Module, name: str) -> None:
    """Switch on gradient checkpointing where the tower really has it; open_clip passes over others in silence."""
    transformer, trunk = getattr(visual, "transformer", None), getattr(visual, "trunk", None)
    if hasattr(transformer, "grad_checkpointing"):
        visual.set_grad_checkpointing(True)  # type: ignore[operator]
        return
    try:
        trunk.set_grad_checkpointing(True)  # type: ignore[union-attr]
    except (AttributeError, AssertionError):
        raise InputError(
            f"tuning.gradient_checkpointing: the image tower of {name} has none",
            "switch it off; lower train.queries or train.precision to save memory",
        ) from None


def _with_adapters(visual: nn.Module, backbone: Backbone, tuning: TuningRecipe) -> Any:  # noqa: ANN401 - peft's LoraModel
    """Put LoRA beside every layer that can be adapted; returns peft's model, which can merge it."""
    from peft import LoraConfig, LoraModel

    linear_attention(visual)
    names = _adaptable(visual, backbone)
    if not names:
        raise InputError(
            f"tuning.strategy adapter: the image tower of {backbone.name} has no layer to adapt",
            "take tuning.strategy frozen or full",
        )
    config = LoraConfig(
        r=tuning.lora.rank,
        lora_alpha=tuning.lora.alpha,  # type: ignore[arg-type] # any number will do
        lora_dropout=tuning.lora.dropout,
        target_modules="|".join(map(re.escape, names)),
        bias="none",
    )
    return LoraModel(visual, config, "default")


def _adaptable(visual: nn.Module, backbone: Backbone) -> list[str]:
    """Names of the linear layers and convolutions that a picture passes through.

    Layers whose weights another module reads without calling them (a ResNet's attention pool) cannot be
    adapted. Grouped convolutions have no low-rank form, and those that only cut patches are left alone.
    """
    called: set[str] = set()

    def note(name: str) -> Any:  # noqa: ANN401 - a hook
        return lambda *_: called.add(name)

    hooks = [part.register_forward_hook(note(name)) for name, part in visual.named_modules() if _has_low_rank(part)]
    size = backbone.image_size
    with torch.inference_mode():
        visual.eval()(torch.zeros(1, 3, size, size, device=next(visual.parameters()).device))
    for hook in hooks:
        hook.remove()
    return [name for name, _ in visual.named_modules() if name in called]


def _has_low_rank(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        cuts_patches = module.kernel_size == module.stride != (1, 1)
        return module.groups == 1 and not cuts_patches
    return isinstance(module, nn.Linear)
