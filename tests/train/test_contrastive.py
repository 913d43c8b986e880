"""What the contrastive stage adds to CLIP's loss: frame partners, and two looks at every batch of clips."""

from __future__ import annotations

import numpy as np
import torch

from m2df_train.data.generated import Batch
from m2df_train.training.contrastive import LOOKS, SHARPNESS, look_at, partner_similarities


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


def test_looks_at_a_batch_share_its_frames_out_and_mirror_the_second() -> None:
    clips = np.random.default_rng(0).integers(0, 256, (2, 3 * LOOKS, 5, 5, 3), dtype=np.uint8)
    batch = Batch(clips, np.arange(2), ("a person walking", "a person running"))
    first, second = (look_at(batch, look) for look in range(2))
    np.testing.assert_array_equal(first.clips, clips[:, ::LOOKS])
    np.testing.assert_array_equal(second.clips[:, :, :, ::-1], clips[:, 1::LOOKS])
    assert first.texts == second.texts == batch.texts
