from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from m2df_export.graphs.onnx import export_onnx
from m2df_export.graphs.specs import VisualGraph, graph_specs
from m2df_export.pipeline import ExportOptions, export_bundle, pretrained_model
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import motion_channels
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.model import imagenet_weights
from m2df_train.model.backbone import Backbone, import_open_clip, load_backbone
from m2df_train.model.heads import build_head

CLIP = ClipSpec(frames=8, size=64, region="motion", channels="motion", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("m2df-two-stream")


def photographs(count: int) -> np.ndarray:
    """Smooth pictures in grey, uint8 [count, 64, 64]."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 6, 6), np.uint8)
    return np.stack([np.asarray(Image.fromarray(picture).resize((64, 64))) for picture in coarse])


def moving_clip(count: int) -> np.ndarray:
    """Motion channels of pictures that follow each other, uint8 [count, 64, 64, 3]."""
    pictures = photographs(count + 1)
    return motion_channels(pictures[1:], pictures[:-1], pictures[0])


def features_of(backbone: Backbone, frames: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return backbone.encode_frames(torch.from_numpy(frames), CLIP).numpy()


def test_appearance_is_that_of_the_middle_frame_and_of_its_change(backbone: Backbone) -> None:
    clip = moving_clip(8)
    seen: list[torch.Tensor] = []
    trunk = backbone.clip.visual.trunk.appearance.trunk
    hook = trunk.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    looks = features_of(backbone, clip[None])[0, :, 128:]
    hook.remove()
    shown = (128.0 * seen[0] + 127.0).numpy()  # (2, 3, 64, 64)
    for picture, channel in zip(shown, (0, 1), strict=True):
        np.testing.assert_allclose(picture, np.repeat(clip[4, :, :, channel][None], 3, axis=0), atol=1e-4)
    assert (looks == looks[0]).all()


def test_clips_in_a_row_are_told_apart_and_frames_without_a_middle_one_have_the_last(backbone: Backbone) -> None:
    frames = moving_clip(19)  # two clips and three frames
    together = features_of(backbone, frames)
    parts = [features_of(backbone, part) for part in (frames[:8], frames[8:16], frames[16:])]
    np.testing.assert_allclose(together, np.concatenate(parts), atol=1e-5)
    alone = features_of(backbone, frames[18:])
    np.testing.assert_allclose(parts[2][:, 128:], np.repeat(alone[:, 128:], 3, axis=0), atol=1e-5)


def test_its_exported_graph_tells_clips_apart_too(backbone: Backbone, tmp_path: Path) -> None:
    head = build_head("training-free", backbone.dim, 8, {"appearance": {"dim": backbone.appearance_dim}})
    assert VisualGraph(backbone, CLIP).folded  # differences reach both streams as they are, around 0
    for opset in (18, 16):
        path = tmp_path / f"visual-{opset}.onnx"
        export_onnx(graph_specs(backbone, head, CLIP)["visual"], path, opset=opset, metadata={})
        readers = [node.op_type for node in onnx.load(path).graph.node if "frames" in node.input]
        assert readers == ["Cast"]  # all that TensorRT takes 8 bits for
        graph = OnnxRuntimeBackend("cpu", 1).load(path, path.name)
        for count in (1, 8, 24, 29):
            frames = moving_clip(count)
            given = graph.run({"frames": frames})["features"]
            np.testing.assert_allclose(given, features_of(backbone, frames), atol=1e-4)


def test_the_network_is_the_published_one_and_its_distances_are_kept(backbone: Backbone) -> None:
    import_open_clip()
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(imagenet_weights.lite0_weights(network.state_dict()))
    pictures = np.concatenate([photographs(4), np.roll(photographs(4), 20, axis=2)])
    frames = np.stack([pictures, *[np.full_like(pictures, 128)] * 2], axis=-1)
    ours = np.stack([features_of(backbone, frame[None])[0, 128:256] for frame in frames])  # of the pictures themselves
    with torch.inference_mode():
        grey = (torch.from_numpy(pictures).float() - 127.0) / 128.0
        whole = network.eval().forward_head(
            network.forward_features(grey[:, None].expand(-1, 3, -1, -1)), pre_logits=True
        )

    def cosines(features: np.ndarray) -> np.ndarray:
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        return (unit @ unit.T)[np.triu_indices(len(unit), 1)]

    assert np.corrcoef(cosines(ours), cosines(whole.numpy()))[0, 1] > 0.9


def test_both_streams_stand_side_by_side_and_texts_say_nothing_of_appearance(backbone: Backbone) -> None:
    frames = torch.randint(0, 256, (1, 8, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        both, moving = backbone.encode_frames(frames, CLIP), backbone.encode_frames(frames, CLIP, like_text=True)
        texts = backbone.encode_text(import_open_clip().get_tokenizer("ViT-B-32")(["a person waving"]))
    assert (backbone.dim, backbone.appearance_dim) == (384, 256)
    torch.testing.assert_close(both[..., :128], moving)
    assert not texts[:, 128:].any() and texts[:, :128].all()


def test_clips_of_frames_that_do_not_fill_its_rows_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    assert backbone.clip_problem(CLIP.model_copy(update={"frames": 16})) is None
    with pytest.raises(InputError, match=r"frames is 12, the image tower of m2df-two-stream takes a multiple of 8"):
        export_bundle(pretrained_model("m2df-two-stream", None, frames=12), ExportOptions(out=tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_other_weights_than_the_published_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / imagenet_weights.PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / imagenet_weights.FILE).write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="not the published weights"):
        load_backbone("m2df-two-stream")
