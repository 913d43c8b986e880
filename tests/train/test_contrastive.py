"""What the contrastive stage adds to CLIP's loss: frame partners, and several looks at every batch of clips."""

from __future__ import annotations

import numpy as np
import torch

from m2df_train.data.generated import Batch
from m2df_train.training.batch_augment import PHASES, look_at, vary
from m2df_train.training.contrastive import SHARPNESS, partner_similarities


def test_partner_similarities_equal_a_plain_loop() -> None:
    features = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=-1, keepdims=True)
    expected = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            for one, other in ((i, j), (j, i)):
                for frame in unit[one]:
                    partners = np.exp(SHARPNESS * unit[other] @ frame)
                    expected[i, j] += np.log(partners.mean()) / SHARPNESS / 4 / 2
    np.testing.assert_allclose(partner_similarities(features).numpy(), expected, atol=1e-12)


def test_partners_ignore_the_order_of_frames_but_not_what_they_show() -> None:
    features = torch.eye(6)[[0, 1, 2, 2, 0, 1, 3, 4, 5]].unflatten(0, (3, 3))  # the second is the first, turned round
    similar = partner_similarities(features)
    torch.testing.assert_close(similar[0, 1], similar[0, 0])
    assert similar[0, 2] < similar[0, 1] - 0.5


def test_four_looks_at_a_batch_see_every_frame_once_as_it_is_and_once_mirrored() -> None:
    clips = np.random.default_rng(0).integers(0, 256, (2, 3 * PHASES, 5, 5, 3), dtype=np.uint8)
    batch = Batch(clips, np.arange(2), ("a person walking", "a person running"))
    looks = [look_at(batch, look) for look in range(4)]
    np.testing.assert_array_equal(looks[0].clips, clips[:, ::2])
    np.testing.assert_array_equal(looks[1].clips[:, :, :, ::-1], clips[:, 1::2])
    np.testing.assert_array_equal(looks[2].clips[:, :, :, ::-1], looks[0].clips)
    np.testing.assert_array_equal(looks[3].clips[:, :, :, ::-1], looks[1].clips)
    assert all(look.texts == batch.texts for look in looks)


def test_a_varied_clip_is_the_same_scene_framed_and_exposed_once_for_all_its_frames() -> None:
    x = np.linspace(60, 200, 32).round().astype(np.uint8)
    grey = np.broadcast_to(x[None, None, None, :, None], (6, 3, 32, 32, 1))
    still = np.concatenate([grey, np.full((6, 3, 32, 32, 2), 128, np.uint8)], axis=-1)
    varied = vary(torch.from_numpy(still), torch.Generator().manual_seed(0)).numpy()
    assert (varied[..., 1:] == 128).all()  # what does not move stays still
    for frame in range(1, 3):
        np.testing.assert_array_equal(varied[:, frame], varied[:, 0])
    assert len({clip.tobytes() for clip in varied}) == 6
    for clip in varied.astype(float):  # a straight ramp of grey stays one: shifted, stretched and lit otherwise
        middle = clip[0, 12:20, 12:20, 0]
        assert np.abs(np.diff(middle, n=2, axis=1)).max() <= 3
    again = vary(torch.from_numpy(still), torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_array_equal(again, varied)
