"""The printed conformance vectors of method.md, appendix A: every value of its full heads at D = 512."""

from __future__ import annotations

import pytest
import torch
from reference import generate
from torch import Tensor

from m2df_train.model.alignment import cosine
from m2df_train.model.distillation import mutual_distillation
from m2df_train.model.heads import ClipFsarHead, Episode, M2dfHead, build_head
from m2df_train.model.options import DistilOptions
from m2df_train.model.prompt_selection import frame_cosines, topk_frames, topk_score
from m2df_train.recipe.overrides import merged
from m2df_train.recipe.presets import PresetName, find_preset

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def encoder_weights(prefix: str, seeds: dict[str, int]) -> dict[str, Tensor]:
    """Fusion encoder of method.md A.3, D = 512."""
    d, m = 512, 2048
    plan = {
        "attn.k.weight": ("wk", (d, d), 0.08), "attn.out.bias": ("bo", (d,), 0.05),
        "attn.out.weight": ("wo", (d, d), 0.08), "attn.q.weight": ("wq", (d, d), 0.08),
        "attn.v.weight": ("wv", (d, d), 0.08), "norm.bias": ("lb", (d,), 0.1), "norm.weight": ("lw", (d,), 0.1),
        "ffn.fc1.bias": ("b1", (m,), 0.05), "ffn.fc1.weight": ("w1", (m, d), 0.08),
        "ffn.fc2.bias": ("b2", (d,), 0.05), "ffn.fc2.weight": ("w2", (d, m), 0.08),
    }  # fmt: skip
    weights = {
        f"{prefix}fusion.layers.0.{key}": generate(seeds[seed], shape, scale)
        for key, (seed, shape, scale) in plan.items()
    }
    weights[f"{prefix}fusion.layers.0.norm.weight"] += 1.0
    return weights


ENCODER_PARTS = ("wk", "bo", "wo", "wq", "wv", "lb", "lw", "b1", "w1", "b2", "w2")
LOCAL_SEEDS = dict(zip(ENCODER_PARTS, range(1, 12), strict=True))
GLOBAL_SEEDS = dict(zip(ENCODER_PARTS, range(20, 31), strict=True))


@pytest.fixture(scope="module")
def m2df_weights() -> dict[str, Tensor]:
    return published_m2df_weights()


@pytest.fixture(scope="module")
def clip_fsar_weights() -> dict[str, Tensor]:
    return {"text_scale": torch.ones(1), **encoder_weights("", LOCAL_SEEDS)}


def published_m2df_weights() -> dict[str, Tensor]:
    d = 512
    weights = {"text_scale": torch.ones(1), **encoder_weights("local_view.", LOCAL_SEEDS)}
    weights |= encoder_weights("global_view.", GLOBAL_SEEDS)
    for conv, seed in (("conv1", 12), ("conv2", 16)):
        weights[f"local_view.context.{conv}.bias"] = generate(seed, (d,), 0.05)
        weights[f"local_view.context.{conv}.weight"] = generate(seed + 1, (d, d, 3), 0.08)
    for block in range(3):
        for j in range(2):
            key, seed = f"global_view.context.blocks.{block}.conv{j + 1}", 32 + 6 * block + 3 * j
            weights[f"{key}.bias"] = generate(seed, (d,), 0.05)
            weights[f"{key}.parametrizations.weight.original0"] = 0.5 + generate(seed + 1, (d, 1, 1), 0.2)
            weights[f"{key}.parametrizations.weight.original1"] = generate(seed + 2, (d, d, 3), 0.08)
    return weights


def published_episode(dtype: torch.dtype = torch.float32) -> Episode:
    texts, centres = generate(101, (3, 512), 1), generate(102, (3, 1, 512), 1)
    support, query = torch.tensor([2, 0, 1, 1, 0, 2]), torch.tensor([1, 0, 2, 0])
    return Episode(
        support_features=(centres[support] + 0.6 * texts[support].unsqueeze(1) + generate(103, (6, 8, 512), 1.2)).to(
            dtype
        ),
        support_labels=support,
        query_features=(centres[query] + 0.6 * texts[query].unsqueeze(1) + generate(104, (4, 8, 512), 1.2)).to(dtype),
        class_prompts=texts.to(dtype),
        query_labels=query,
        text_table=texts.to(dtype),
    )


def near(actual: Tensor, *rows: str) -> None:
    """Compare with a row, or rows, of the printed table."""
    expected = torch.tensor([[float(x) for x in row.split()] for row in rows])
    torch.testing.assert_close(actual.float(), expected.view_as(actual), atol=1e-4, rtol=1e-4)


PUBLISHED_LOCAL = (  # view distances, one row per query
    "-0.695989 -5.373757 -2.714175",
    "-3.103158 -2.499596 1.209959",
    "1.199281 -2.860947 -4.715643",
    "-3.325969 -3.049586 0.973451",
)
PUBLISHED_GLOBAL = (
    "-1.246233 -4.712306 1.055239",
    "-6.239431 0.856768 2.683197",
    "3.945691 -0.608694 -2.990324",
    "-4.274510 -1.367937 3.486602",
)


def m2df_head(weights: dict[str, Tensor], dtype: torch.dtype, preset: PresetName = "paper", **options) -> M2dfHead:
    """The head in evaluation mode, the most probable prompt unless the options say otherwise."""
    values = merged(find_preset(preset).values["head"]["options"], {"pps": {"eval": "argmax"}})
    built = build_head("m2df", 512, 8, merged(values, options)).eval()
    built.load_state_dict(weights, strict=True)
    assert isinstance(built, M2dfHead)
    return built.to(dtype)


@pytest.mark.parametrize("preset", ["paper", "official-m2df"])
@PRECISIONS
@torch.no_grad()
def test_logits_and_distances_of_m2df(m2df_weights, dtype, preset):
    episode = published_episode(dtype)
    out = m2df_head(m2df_weights, dtype, preset)(episode)
    near(out.distances[:, 0], *PUBLISHED_LOCAL)
    near(out.distances[:, 1], *PUBLISHED_GLOBAL)
    near(out.logits, "1.942222 10.086063 1.658936", "9.342589 1.642828 -3.893156",
         "-5.144972 3.469641 7.705967", "7.600478 4.417523 -4.460053")  # fmt: skip
    near(m2df_head(m2df_weights, dtype, preset, otam={"bidirectional": False})(episode).logits,
         "1.238822 4.671561 0.843639", "4.596623 0.501488 -1.945406",
         "-2.483545 1.728308 4.047728", "4.192450 2.548211 -2.061362")  # fmt: skip
    near(m2df_head(m2df_weights, dtype, preset, pps={"eval": "none"})(episode).logits,
         "1.752789 9.556018 1.133641", "8.755687 1.665112 -3.938255",
         "-5.466937 4.020738 6.724385", "7.088710 4.639361 -3.457846")  # fmt: skip
    near(out.class_logits[[0, -1]], "-0.101305 0.142772 0.545789", "0.459931 0.715597 0.787999")
    near(out.visual_confidence, "0.926546 0.640922 0.862664 0.564303", "0.966775 0.999039 0.914602 0.947788")
    near(out.text_confidence, *TEXT_CONFIDENCE["prompt" if preset == "paper" else "first_frame"])


@PRECISIONS
@torch.no_grad()
def test_steps_of_m2df(m2df_weights, dtype):
    episode, head = published_episode(dtype), m2df_head(m2df_weights, dtype)
    support, query, texts = episode.support_features, episode.query_features, episode.class_prompts
    scores = topk_score(frame_cosines(texts, query))
    near(scores, "0.409317 0.693481 0.631935", "0.613065 0.516968 0.567917",
         "-0.129336 0.275488 0.648324", "0.654915 0.677458 0.711814")  # fmt: skip
    selection = head.select(query, texts, "argmax")
    assert selection.best.tolist() == selection.index.tolist() == [1, 0, 2, 2]
    own = cosine(texts[episode.support_labels].unsqueeze(1), support).squeeze(1)
    kept = ["".join(map(str, video)) for video in topk_frames(support, own)[1].tolist()]
    assert kept == ["0167", "0167", "0123", "2345", "3456", "0167"]

    near(head.local_view.context(support)[0, 0, :4], "0.830692 -0.671857 -2.201988 1.671340")
    near(head.local_view.context(query)[1, 3, 5:8], "-1.981284 -1.033798 3.436665")
    near(head.global_view.context(support)[0, 0, :4], "-0.634137 3.482729 -0.547447 3.975967")
    near(head.global_view.context(query)[1, 3, 5:8], "1.687503 -0.322354 1.306588")
    fused = head.tokens(support, texts[episode.support_labels])
    prototype = fused[episode.support_labels == 0].mean(dim=0)  # [2, 9, D]
    near(prototype[0, :2, :3], "-4.319514 -0.866337 -4.906387", "-2.054552 -8.765978 -1.743866")
    near(prototype[1, :2, :3], "1.526937 -2.808407 -5.918149", "4.860216 0.254105 -2.076648")
    near(head.prototypes(support[episode.support_labels == 0], texts[:1])[:, 0, :3],
         "-2.054552 -8.765978 -1.743866", "4.860216 0.254105 -2.076648")  # fmt: skip
    near(head.tokens(query, selection.prompts)[2, :, 8, :3],
         "-5.292279 -0.136325 3.137851", "-1.863684 0.381521 -1.752595")  # fmt: skip


TEXT_CONFIDENCE = {  # of the local and the global view, by the token that is compared
    "prompt": ("0.384986 0.460449 0.473417 0.398983", "0.373886 0.440934 0.446261 0.377451"),
    "first_frame": ("0.355730 0.390391 0.354895 0.411066", "0.410570 0.413056 0.384351 0.403064"),
}


DISTILLATION = [  # conditions; official token: mutual, local teaches, global teaches; the same with the prompt token
    (("t", "v"), (0.178866, 0.0, 0.178866), (0.0, 0.0, 0.0)),
    (("t",), (0.812664, 0.633798, 0.178866), (0.612551, 0.612551, 0.0)),
    (("v",), (0.229036, 0.0, 0.229036), (0.228012, 0.0, 0.228012)),
    ((), (3.570234, 2.668734, 0.901500), (3.570234, 2.668734, 0.901500)),
]


@PRECISIONS
@torch.no_grad()
def test_distillation_of_m2df(m2df_weights, dtype):
    episode = published_episode(dtype)
    for token, column in (("first_frame", 1), ("prompt", 2)):
        out = m2df_head(m2df_weights, dtype, distil={"text_token": token})(episode)
        near(out.text_confidence, *TEXT_CONFIDENCE[token])
        # Any cosines whose softmax has these largest values give the same loss.
        p = out.text_confidence.unsqueeze(-1)  # [2, Q, 1]
        cosines = torch.cat([p, (1 - p) / 2, (1 - p) / 2], dim=-1).log()
        for row in DISTILLATION:
            for direction, value in zip(("mutual", "local_teaches", "global_teaches"), row[column], strict=True):
                options = DistilOptions(conditions=row[0], direction=direction, text_token=token)
                loss = mutual_distillation(out.distances.transpose(0, 1), cosines, options).loss
                assert loss.item() == pytest.approx(value, abs=1e-4), (token, options)
        assert out.losses.distillation.item() == pytest.approx(DISTILLATION[0][column][0], abs=1e-4)


FSAR_VARIANTS = [  # options; whether probabilities are printed; logits
    ({}, False, "-1.796691 1.421783 -2.246856", "2.484860 -3.596315 -3.623309",
     "-5.473536 -2.619707 0.728082", "1.903308 1.073212 -5.238710"),
    ({"prototype": {"merge": "before"}}, False, "-1.667660 0.181564 -3.125527", "2.525059 -2.706319 -4.224322",
     "-5.605805 -2.428584 1.046461", "0.906069 1.061016 -5.239464"),
    ({"otam": {"bidirectional": False}}, False, "-1.095028 1.202559 -1.226183", "1.217620 -1.562720 -1.885749",
     "-2.555329 -1.374751 0.737537", "1.126495 0.713228 -2.546715"),
    ({"text_visual_fusion": {"mode": "text"}}, True, "0.233450 0.379893 0.386657", "0.333605 0.334130 0.332265",
     "0.195603 0.297590 0.506807", "0.304627 0.346529 0.348843"),
    ({"text_visual_fusion": {"mode": "combine"}}, True, "0.238623 0.385038 0.373669", "0.348555 0.323500 0.321766",
     "0.197681 0.298865 0.503214", "0.315510 0.350655 0.325999"),
    ({"text_visual_fusion": {"mode": "combine", "beta": 0.8}}, True, "0.243910 0.390254 0.361117",
     "0.364176 0.313208 0.311598", "0.199782 0.300147 0.499646", "0.326781 0.354830 0.304651"),
    ({"text_visual_fusion": {"mode": "combine", "beta": 0.8}, "prototype": {"merge": "before"}}, True,
     "0.249153 0.385228 0.359702", "0.363557 0.319390 0.306122", "0.198214 0.300210 0.501342",
     "0.322111 0.358480 0.307872"),
]  # fmt: skip


@pytest.mark.parametrize("preset", ["paper", "official-fsar"])
@PRECISIONS
@torch.no_grad()
def test_every_variant_of_clip_fsar(clip_fsar_weights, dtype, preset):
    episode = published_episode(dtype)
    for options, probabilities, *rows in FSAR_VARIANTS:
        values = find_preset(preset, head="clip-fsar").values["head"]["options"]
        head = build_head("clip-fsar", 512, 8, merged(values, options)).eval()
        assert isinstance(head, ClipFsarHead)
        head.load_state_dict(clip_fsar_weights, strict=True)
        out = head.to(dtype)(episode)
        near(out.logits.exp() if probabilities else out.logits, *rows)
        near(out.class_logits[[0, -1]], "-0.345040 -0.063806 0.467616", "0.582424 0.711298 0.717952")
