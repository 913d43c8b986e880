from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import motion_channels
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.model import imagenet_weights
from m2df_train.model.backbone import Backbone, import_open_clip, load_backbone

CLIP = ClipSpec(frames=2, size=96, region="motion", channels="motion", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("m2df-two-stream")


def still_photographs() -> np.ndarray:
    """Smooth pictures in grey, uint8 [4, 96, 96]."""
    rng = np.random.default_rng(0)
    return np.stack(
        [np.asarray(Image.fromarray(p).resize((96, 96))) for p in rng.integers(0, 256, (4, 6, 6), np.uint8)]
    )


def test_appearance_sees_the_frame_before_this_one_and_the_background(backbone: Backbone) -> None:
    now, before, background = still_photographs()[:3]
    pictures = motion_channels(now[None], before[None], background)
    seen: list[torch.Tensor] = []
    trunk = backbone.clip.visual.trunk.appearance.trunk
    hook = trunk.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.inference_mode():
        backbone.encode_frames(torch.from_numpy(pictures[None]), CLIP)
    hook.remove()
    red_green_blue = (128.0 * seen[0][0] + 127.0).numpy()
    # Halved differences lose their last bit.
    np.testing.assert_allclose(red_green_blue, np.stack([before, now, background]), atol=1.01)


def test_the_network_is_the_published_one_and_its_distances_are_kept(backbone: Backbone) -> None:
    import_open_clip()
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(imagenet_weights.lite0_weights(network.state_dict()))
    pictures = np.concatenate([still_photographs(), np.roll(still_photographs(), 20, axis=2)])
    still = np.stack([pictures, *[np.full_like(pictures, 128)] * 2], axis=-1)
    with torch.inference_mode():
        ours = backbone.encode_frames(torch.from_numpy(still), CLIP)[:, 128:]
        grey = (torch.from_numpy(pictures).float() - 127.0) / 128.0
        whole = network.eval().forward_head(
            network.forward_features(grey[:, None].expand(-1, 3, -1, -1)), pre_logits=True
        )

    def cosines(features: torch.Tensor) -> np.ndarray:
        unit = torch.nn.functional.normalize(features, dim=1)
        return (unit @ unit.T)[np.triu_indices(len(unit), 1)].numpy()

    assert np.corrcoef(cosines(ours), cosines(whole))[0, 1] > 0.9


def test_movement_is_seen_in_pillows_64_pixels(backbone: Backbone) -> None:
    seen: list[torch.Tensor] = []
    motion = backbone.clip.visual.trunk.motion
    hook = motion.trunk.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    pictures = np.stack([still_photographs()[:3]] * 2, axis=0).transpose(0, 2, 3, 1)
    with torch.inference_mode():
        features = backbone.encode_frames(torch.from_numpy(np.ascontiguousarray(pictures[None])), CLIP, like_text=True)
    hook.remove()
    assert features.shape == (1, 2, 128)
    small = (seen[0][0] * motion.std[0] + motion.mean[0]).numpy() * 255
    for channel, picture in enumerate(still_photographs()[:3]):
        expected = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(small[channel], expected, atol=1.2)  # Pillow rounds twice


def test_both_streams_stand_side_by_side_and_texts_say_nothing_of_appearance(backbone: Backbone) -> None:
    frames = torch.randint(0, 256, (1, 2, 96, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        both, moving = backbone.encode_frames(frames, CLIP), backbone.encode_frames(frames, CLIP, like_text=True)
        texts = backbone.encode_text(import_open_clip().get_tokenizer("ViT-B-32")(["a person waving"]))
    assert (backbone.dim, backbone.appearance_dim) == (384, 256)
    torch.testing.assert_close(both[..., :128], moving)
    assert not texts[:, 128:].any() and texts[:, :128].all()


def test_other_weights_than_the_published_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / imagenet_weights.PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / imagenet_weights.FILE).write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="not the published weights"):
        load_backbone("m2df-two-stream")
