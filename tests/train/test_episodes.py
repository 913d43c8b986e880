"""Episode sampling: determinism, the group rule, and what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2df_runtime.errors import InputError
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler


def clips(*counts: int) -> list[str]:
    return [f"class{number}" for number, count in enumerate(counts) for _ in range(count)]


def flat(episode: EpisodeIndices) -> list[list[int]]:
    return [episode.classes.tolist(), episode.support.tolist(), episode.query.tolist()]


def test_shapes_and_membership():
    labels = clips(4, 6, 5, 9, 7, 8)
    sampler = EpisodeSampler(labels, way=3, shot=2, query=2)
    for episode in sampler.episodes(50):
        assert episode.support.shape == (3, 2)
        assert episode.query.shape == (3, 2)
        assert len(set(episode.classes.tolist())) == 3
        used = np.concatenate([episode.support, episode.query], axis=1)
        assert len(set(used.ravel().tolist())) == used.size
        for row, position in zip(used, episode.classes, strict=True):
            assert {labels[i] for i in row} == {sampler.classes[position]}


def test_an_episode_depends_on_seed_and_index_only():
    labels = clips(*[10] * 8)
    sampler = EpisodeSampler(labels, way=5, shot=1, query=1, seed=7)
    in_order = [flat(e) for e in sampler.episodes(40)]
    backwards = [flat(sampler.episode(i)) for i in reversed(range(40))][::-1]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda i: flat(sampler.episode(i)), range(40)))
    assert in_order == backwards == threaded
    assert [flat(e) for e in sampler.episodes(10, start=30)] == in_order[30:]
    other = EpisodeSampler(labels, way=5, shot=1, query=1, seed=8)
    assert [flat(e) for e in other.episodes(40)] != in_order


def test_classes_and_clips_are_drawn_evenly():
    sampler = EpisodeSampler(clips(*[4] * 6), way=2, shot=1, query=1)
    drawn = np.zeros(6)
    support = np.zeros(24)
    for episode in sampler.episodes(6000):
        drawn[episode.classes] += 1
        support[episode.support.ravel()] += 1
    # 6000 * 2 / 6 = 2000 with a standard deviation of about 37; 12000 / 24 = 500 with about 22
    assert np.abs(drawn - 2000).max() < 200
    assert np.abs(support - 500).max() < 120


@settings(max_examples=60)
@given(
    sizes=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=7), min_size=2, max_size=5),
    shot=st.integers(1, 3),
    query=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_no_group_is_support_and_query(sizes, shot, query, seed):
    labels = [f"c{c}" for c, row in enumerate(sizes) for n in row for _ in range(n)]
    groups = [f"g{g}" for row in sizes for g, n in enumerate(row) for _ in range(n)]
    try:
        sampler = EpisodeSampler(labels, groups=groups, way=2, shot=shot, query=query, seed=seed)
        episodes = [sampler.episode(i) for i in range(3)]
    except InputError:
        return
    for episode in episodes:
        support = {groups[i] for i in episode.support.ravel()}
        assert support.isdisjoint(groups[i] for i in episode.query.ravel())
        for row, position in zip(np.hstack([episode.support, episode.query]), episode.classes, strict=True):
            assert {labels[i] for i in row} == {sampler.classes[position]}


def test_many_shots_of_few_groups_are_found():
    # 18 shots and 1 query of 20 people: fair coins alone give such a division once in 5,000.
    labels = [c for c in ("a", "b") for _ in range(20)]
    groups = [str(g) for _ in range(2) for g in range(20)]
    sampler = EpisodeSampler(labels, groups=groups, way=2, shot=18, query=1)
    assert sampler.episode(0).support.shape == (2, 18)


def test_a_class_of_one_group_is_never_drawn():
    labels = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    groups = ["x", "x", "y", "y", "x", "y", "x", "y", "x", "x", "x", "x"]
    sampler = EpisodeSampler(labels, groups=groups, way=2, shot=2, query=2)
    assert sampler.excluded == {"c": 4}
    assert all(set(e.classes.tolist()) == {0, 1} for e in sampler.episodes(30))


def test_too_small_classes_are_left_out_and_named():
    sampler = EpisodeSampler(clips(5, 2, 5), way=2, shot=3, query=2)
    assert sampler.excluded == {"class1": 2}
    with pytest.raises(InputError, match=r"3-way episodes need 3 classes.*2 found.*'class1' has 2"):
        EpisodeSampler(clips(5, 2, 5), way=3, shot=3, query=2)


def test_groups_make_a_class_too_small():
    with pytest.raises(InputError, match="from different groups, 1 found; too few clips: 'b' has 4"):
        EpisodeSampler(["a"] * 4 + ["b"] * 4, groups=list("xyxy") + list("xxxx"), way=2, shot=1, query=1)


def test_classes_possible_alone_but_never_together():
    # "a" needs x on the support side, "b" needs x on the query side.
    labels = ["a"] * 3 + ["b"] * 3
    groups = ["x", "x", "y", "y", "y", "x"]
    with pytest.raises(InputError, match="no division of the 2 groups leaves 2 classes"):
        EpisodeSampler(labels, groups=groups, way=2, shot=2, query=1).episode(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 1, "shot": 1}, "way must be at least 2"),
        ({"way": 2, "shot": 0}, "shot must be at least 1"),
        ({"way": 2, "shot": 1, "query": 0}, "query must be at least 1"),
        ({"way": 2, "shot": 1, "seed": -1}, "seed must be at least 0"),
        ({"way": 2, "shot": 1, "groups": ["x"]}, "1 groups for 6 clips"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(InputError, match=message):
        EpisodeSampler(clips(3, 3), **options)
