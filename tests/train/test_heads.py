from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import conv1d, pad

from m2df_train.model.heads import Episode, EpisodeOutput, Head, M2dfOptions, build_head
from m2df_train.model.temporal import GlobalContext, LocalContext

NAMES = ["m2df", "clip-fsar", "training-free"]
SMALL = {"heads": 2, "ffn_dim": 24}


def small(name: str, frames: int = 4, **options) -> Head:
    """A head of 16 channels in evaluation mode, the same weights on every call."""
    torch.manual_seed(7)
    shape = {} if name == "training-free" else SMALL
    return build_head(name, 16, frames, {**shape, **options}).eval()


def random_episode(seed: int, way: int, shots: list[int], queries: int, frames: int = 4) -> Episode:
    g = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((k,), w) for w, k in enumerate(shots[:way])])
    labels = labels[torch.randperm(len(labels), generator=g)]
    return Episode(
        support_features=torch.randn(len(labels), frames, 16, generator=g),
        support_labels=labels,
        query_features=torch.randn(queries, frames, 16, generator=g),
        class_prompts=torch.randn(way, 16, generator=g),
        query_labels=torch.randint(way, (queries,), generator=g),
    )


def class_by_class(head: Head, episode: Episode) -> Tensor:
    """Prototypes the way deployment makes them: one class at a time."""
    return torch.stack(
        [
            head.prototypes(episode.support_features[episode.support_labels == w], prompt.unsqueeze(0))
            for w, prompt in enumerate(episode.class_prompts)
        ]
    )


episodes = st.builds(
    random_episode,
    seed=st.integers(0, 2**16),
    way=st.integers(1, 4),
    shots=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    queries=st.integers(1, 3),
)
variants = pytest.mark.parametrize(
    ("name", "options"),
    [
        ("m2df", {"pps": {"eval": "argmax"}}),
        ("m2df", {"pps": {"eval": "expectation"}, "mean_weight": 0.5, "otam": {"lambda": 0.1}}),
        ("m2df", {"pps": {"eval": "none"}, "otam": {"bidirectional": False}, "view_weights": (1.0, 0.5)}),
        ("clip-fsar", {}),
        ("clip-fsar", {"prototype": {"merge": "before"}, "text_visual_fusion": {"mode": "combine"}}),
        ("training-free", {}),
        ("training-free", {"otam_weight": 0.0, "mean_weight": 1.0}),
    ],
)


@variants
@settings(max_examples=6)
@given(episode=episodes)
@torch.no_grad()
def test_prototypes_and_match_agree_with_a_whole_episode(name, options, episode):
    head = small(name, **options)
    whole = head(episode)
    prototypes = class_by_class(head, episode)
    assert prototypes.shape == (len(episode.class_prompts), head.views, 4, 16)
    torch.testing.assert_close(prototypes, whole.prototypes, atol=1e-5, rtol=1e-5)
    match = head.match(episode.query_features, episode.class_prompts, prototypes)
    torch.testing.assert_close(match.logits, whole.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(match.distances, whole.distances, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(match.selected, whole.selected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(match.selected.sum(dim=1), torch.ones(len(episode.query_features)))
    torch.testing.assert_close(head.distances(match.tokens, prototypes), match.distances)


def exactly(head: Head, episode: Episode) -> EpisodeOutput:
    """The episode in float64, where nothing but a real dependence makes a difference above 1e-9."""
    return head.double()(
        replace(
            episode,
            support_features=episode.support_features.double(),
            query_features=episode.query_features.double(),
            class_prompts=episode.class_prompts.double(),
        )
    )


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@variants
@settings(max_examples=6)
@given(episode=episodes, data=st.data())
@torch.no_grad()
def test_order_of_supports_is_irrelevant(name, options, episode, data):
    head = small(name, **options)
    order = torch.tensor(data.draw(st.permutations(range(len(episode.support_labels)))))
    shuffled = replace(
        episode, support_features=episode.support_features[order], support_labels=episode.support_labels[order]
    )
    found, expected = exactly(head, shuffled), exactly(head, episode)
    same(found.prototypes, expected.prototypes)
    same(found.logits, expected.logits)
    same(found.losses.total, expected.losses.total)


@variants
@settings(max_examples=6)
@given(episode=episodes, data=st.data())
@torch.no_grad()
def test_giving_every_shot_of_a_class_twice_changes_nothing(name, options, episode, data):
    head = small(name, **options)
    twice = episode.support_labels == data.draw(st.integers(0, len(episode.class_prompts) - 1))
    doubled = replace(
        episode,
        support_features=torch.cat([episode.support_features, episode.support_features[twice]]),
        support_labels=torch.cat([episode.support_labels, episode.support_labels[twice]]),
    )
    found, expected = exactly(head, doubled), exactly(head, episode)
    same(found.prototypes, expected.prototypes)
    same(found.logits, expected.logits)


@variants
@settings(max_examples=6)
@given(episode=episodes, seed=st.integers(0, 999), data=st.data())
@torch.no_grad()
def test_a_further_class_touches_no_other_prototype_and_without_selector_no_distance(
    name, options, episode, seed, data
):
    head = small(name, **options)
    way = len(episode.class_prompts)
    place = data.draw(st.integers(0, way))  # of the new class among the others
    kept = torch.tensor([w for w in range(way + 1) if w != place])
    new = random_episode(seed, way=1, shots=[2], queries=1)
    prompts = torch.cat([episode.class_prompts[:place], new.class_prompts, episode.class_prompts[place:]])
    more = replace(
        episode,
        support_features=torch.cat([new.support_features, episode.support_features]),
        support_labels=torch.cat([new.support_labels + place, kept[episode.support_labels]]),
        class_prompts=prompts,
        query_labels=None,
    )
    found, expected = exactly(head, more), exactly(head, episode)
    same(found.prototypes[kept], expected.prototypes)
    if name != "m2df" or options["pps"]["eval"] == "none":
        same(found.distances[:, :, kept], expected.distances)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_half_precision_stays_close_and_matches_in_float32(name):
    head = small(name)
    episode = random_episode(5, way=3, shots=[2, 2, 2], queries=3)
    prototypes = class_by_class(head, episode)
    exact = head.match(episode.query_features, episode.class_prompts, prototypes)
    half = head.half().match(episode.query_features.half(), episode.class_prompts.half(), prototypes.half())
    assert half.distances.dtype == torch.float32
    torch.testing.assert_close(half.distances, exact.distances, atol=0.05, rtol=0.01)


def test_large_activations_survive_half_precision():
    head = small("m2df", pps={"eval": "argmax"}).half()
    features = torch.randn(2, 4, 16).half() * 600  # squares are beyond 65504
    prototypes = head.prototypes(features, torch.randn(1, 16).half()).unsqueeze(0)
    assert torch.isfinite(head.match(features, torch.randn(1, 16).half(), prototypes).logits).all()


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 40])
@torch.no_grad()
def test_contexts_are_convolutions_over_time(frames):
    torch.manual_seed(0)
    clips = torch.randn(3, frames, 6, dtype=torch.float64)
    local, whole = LocalContext(6).double(), GlobalContext(6).double().eval()
    x = clips.transpose(1, 2)
    for layer in (local.conv1, local.conv2):
        x = conv1d(x, layer.weight, layer.bias, padding=1)
    same(local(clips), x.transpose(1, 2))
    x = clips.transpose(1, 2)
    for block, dilation in zip(whole.blocks, (1, 2, 4), strict=True):
        h = x
        for layer in (block.conv1, block.conv2):
            h = conv1d(pad(h, (2 * dilation, 0)), layer.weight, layer.bias, dilation=dilation).relu()
        x = (h + x).relu()
    same(whole.network(clips, range(frames)), x.transpose(1, 2))
    same(whole(clips), clips + x[:, :, -1:].transpose(1, 2))


def test_mean_term_is_added_to_the_papers_distance():
    episode = random_episode(1, way=3, shots=[1, 2, 1], queries=4)
    with torch.no_grad():
        paper = small("m2df")(episode).distances
        alone = small("m2df", otam_weight=0.0, mean_weight=1.0)(episode).distances
        mixed = small("m2df", mean_weight=0.25)(episode).distances
    torch.testing.assert_close(mixed, paper + 0.25 * alone)


def test_training_free_scores_are_clips_own():
    episode = random_episode(2, way=3, shots=[1, 1, 1], queries=4)
    pooled = torch.nn.functional.normalize(episode.query_features.mean(dim=1), dim=-1)
    text = 100.0 * pooled @ torch.nn.functional.normalize(episode.class_prompts, dim=-1).T
    visual_only, text_only = small("training-free", beta=0.0)(episode), small("training-free", beta=1.0)(episode)
    torch.testing.assert_close(text_only.logits, text, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(visual_only.logits, -100.0 * visual_only.distances[:, 0] / (4 * 2))
    torch.testing.assert_close(visual_only.selected, text.softmax(dim=1))
    assert not list(small("training-free").parameters())


def test_sampling_repeats_with_the_seed_and_matching_refuses_it():
    head = small("m2df", pps={"eval": "sample", "temperature": 1.0})
    episode = random_episode(4, way=4, shots=[1] * 4, queries=3)
    with torch.no_grad():
        torch.manual_seed(0)
        first = head(episode).logits
        torch.manual_seed(0)
        assert torch.equal(first, head(episode).logits)
        with pytest.raises(ValueError, match="matching is deterministic"):
            head.match(episode.query_features, episode.class_prompts, torch.randn(4, 2, 4, 16))


@pytest.mark.parametrize("name", ["m2df", "clip-fsar"])
def test_a_training_step_reaches_every_parameter(name):
    head = small(name, loss={"lambda_text": 1.0}).train()
    episode = random_episode(6, way=3, shots=[2, 3, 2], queries=6)
    classes = torch.tensor([4, 0, 2])
    episode = Episode(
        episode.support_features,
        episode.support_labels,
        episode.query_features,
        episode.class_prompts,
        episode.query_labels,
        torch.randn(5, 16),
        classes[episode.support_labels],
        classes[episode.query_labels],
    )
    out = head(episode)
    assert out.class_logits.shape == (13, 5)
    out.losses.total.backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_text_loss_without_a_text_table_is_refused():
    with pytest.raises(ValueError, match="needs text_table"):
        small("clip-fsar").train()(random_episode(0, way=2, shots=[1, 1], queries=2))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("m2df", {"pps": {"eval": "best"}}),
        ("m2df", {"temperature": 3}),
        ("m2df", {"otam_weight": 0.0}),
        ("clip-fsar", {"pps": {}}),
        ("clip-fsar", {"otam": {"lambda": 0.0}}),
        ("training-free", {"beta": 1.5}),
    ],
)
def test_impossible_options_are_refused(name, options):
    with pytest.raises(ValidationError):
        build_head(name, 16, 4, options)


def test_build_head_names_what_it_knows():
    with pytest.raises(ValueError, match="m2df, clip-fsar, training-free"):
        build_head("trx", 16, 4)
    with pytest.raises(ValueError, match="not the options"):
        build_head("clip-fsar", 64, 8, M2dfOptions())
    with pytest.raises(ValueError, match="do not divide"):
        build_head("m2df", 20, 8)


def test_options_survive_a_round_trip_under_their_file_names():
    options = M2dfOptions.model_validate({"otam": {"lambda": 0.1}, "distil": {"conditions": ["t"]}})
    values = options.model_dump(mode="json")
    assert values["otam"]["lambda"] == 0.1
    assert M2dfOptions.model_validate(values) == options
    assert M2dfOptions().pps.train == "sample"
    assert M2dfOptions().pps.eval == "argmax"


@pytest.mark.parametrize("name", NAMES)
def test_appearance_is_compared_beside_what_the_method_compares(name):
    whole = small(name, appearance={"dim": 6, "weight": 3.0})
    torch.manual_seed(7)
    method = build_head(name, 10, 4, {} if name == "training-free" else SMALL).eval()
    method.load_state_dict(whole.state_dict())
    episode = random_episode(3, 3, [1, 2, 1], 5)

    def without(values: Tensor) -> Tensor:
        return values[..., :10]

    inner = replace(
        episode,
        support_features=without(episode.support_features),
        query_features=without(episode.query_features),
        class_prompts=without(episode.class_prompts),
    )
    support, query = (f[..., 10:].mean(dim=1) for f in (episode.support_features, episode.query_features))
    labels = episode.support_labels
    classes = torch.stack([support[labels == w].mean(dim=0) for w in range(3)])
    norms = query.norm(dim=1)[:, None] * classes.norm(dim=1)[None]
    looks = 1.0 - query @ classes.T / (norms + 0.01)
    expected = method(inner).distances + 3.0 / whole.views * looks[:, None]
    torch.testing.assert_close(whole(episode).distances, expected)
    match = whole.match(episode.query_features, episode.class_prompts, class_by_class(whole, episode))
    torch.testing.assert_close(match.distances, expected)
    torch.testing.assert_close(match.selected, method(inner).selected)
    if name == "m2df":
        torch.testing.assert_close(match.logits, method(inner).logits - 3.0 * looks)
    torch.testing.assert_close(
        match.tokens[..., 10:], episode.query_features[:, None, :, 10:].expand(-1, whole.views, -1, -1)
    )


def test_appearance_must_leave_something_to_the_method():
    with pytest.raises(ValueError, match="leaves nothing"):
        build_head("m2df", 16, 4, {"appearance": {"dim": 16}})
