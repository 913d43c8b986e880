"""What live sources are made of, by itself: which frames are kept, their times, lateness, names without passwords."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2df_runtime.errors import InputError
from m2df_runtime.stream.policy import BUDGET, Encoded, Freshest, FreshestEncoded
from m2df_runtime.stream.sources.addresses import checked_address, device_number, is_address, masked
from m2df_runtime.stream.sources.lateness import Lateness
from m2df_runtime.stream.sources.live_times import LiveTimes


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_keeps_up_gets_every_frame_and_who_does_not_gets_the_newest() -> None:
    clock = Clock()
    frames: Freshest[int] = Freshest(clock, budget=0.5)
    for number in range(100):
        clock.now = number / 25
        frames.put(number, 1)
        assert frames.take() == number
    assert frames.take() is None and not frames.dropped
    for number in range(50):  # nobody takes any for two seconds
        clock.now = 10 + number / 25
        frames.put(number, 1)
    taken = [frames.take() for _ in range(13)]
    assert taken == list(range(37, 50))  # put from 11.48 on, now is 11.96
    assert frames.take() is None and dict(frames.dropped) == {"stale": 37}


def test_frames_that_wait_are_bounded_in_number_and_bytes() -> None:
    frames: Freshest[int] = Freshest(Clock())
    for number in range(1000):
        frames.put(number, 1)
    held = 0
    while frames.take() is not None:
        held += 1
    assert held == 64 and dict(frames.dropped) == {"full": 936}
    for number in range(100):
        frames.put(number, 3840 * 2160 * 3 // 2)
    held = 0
    while (last := frames.take()) is not None:
        held, newest = held + 1, last
    assert (held, newest) == (10, 99)
    frames.put(7, 1 << 40)  # one alone is held whatever its size
    assert frames.take() == 7


def test_a_frame_that_is_old_already_waits_for_the_rest() -> None:
    clock = Clock()
    frames: Freshest[int] = Freshest(clock)
    for age in (0.6, 0.3, 0.1):
        frames.put(round(10 * age), 1, age)
    clock.now = 0.3
    assert (frames.take(), frames.take(), dict(frames.dropped)) == (1, None, {"stale": 2})


class Decoder:
    """Takes numbered frames, of which every so-manieth is a keyframe."""

    def __init__(self, keyframes: int) -> None:
        self.clock, self.left_out = Clock(), 0
        self._frames: FreshestEncoded[int] = FreshestEncoded(self.clock, self._tell_left_out)
        self._keyframes = keyframes
        self.count = 0
        self.taken: list[Encoded[int]] = []
        self.ages: list[float] = []

    def arrive(self, nbytes: int = 1, late: float = 0.0) -> None:
        self._frames.put(self.count, nbytes, keyframe=self.count % self._keyframes == 0, late=late)
        self.count += 1

    def take(self) -> bool:
        one = self._frames.take()
        if one is not None:
            self.taken.append(one)
            self.ages.append(self.clock.now - one.since)
        return one is not None

    def _tell_left_out(self, count: int) -> None:
        self.left_out += count

    @property
    def missing(self) -> float:
        return self._frames.missing

    @property
    def numbers(self) -> list[int]:
        return [one.item for one in self.taken]

    @property
    def begins(self) -> list[int]:
        return [one.item for one in self.taken if one.begins]

    def held_up(self, frames: int, each: float) -> None:
        """Frames come at 25 a second while none is taken; then all are, each of which takes so long."""
        for number in range(frames):
            self.clock.now = number / 25
            self.arrive()
        while self.take():
            self.clock.now += each


def test_a_decoder_that_was_held_up_catches_up_where_no_keyframe_came() -> None:
    decoder = Decoder(keyframes=1000)
    decoder.held_up(100, each=0.004)  # ten times as fast as they came
    assert decoder.numbers == [*range(100)] and not decoder.left_out
    assert decoder.ages[0] == pytest.approx(3.96) and decoder.ages[-1] < BUDGET


@pytest.mark.parametrize(("keyframes", "begin"), [(10, 70), (40, 40), (1, 62)], ids=["fresh", "newest", "all"])
def test_a_decoder_that_was_held_up_goes_on_from_a_keyframe(keyframes: int, begin: int) -> None:
    """From the first one of the last half second, at 2.96 s; where there is none, from the newest."""
    decoder = Decoder(keyframes)
    decoder.held_up(75, each=0.001)
    assert decoder.numbers == [*range(begin, 75)] and decoder.begins == [begin]
    assert decoder.left_out == begin


@pytest.mark.parametrize("keyframes", [1, 20, 250])
def test_a_decoder_that_is_too_slow_begins_at_keyframes_and_is_never_far_behind(keyframes: int) -> None:
    """It decodes 20 of 25 frames a second, for two minutes."""
    decoder = Decoder(keyframes)
    for moment in range(120 * 100):
        decoder.clock.now = moment / 100
        if moment % 4 == 0:
            decoder.arrive()
        if moment % 5 == 0:
            decoder.take()
    assert max(decoder.ages) <= 2 * BUDGET + 0.05, "old, and tried for as long"
    assert decoder.begins and all(number % keyframes == 0 for number in decoder.begins)
    gaps = [later for before, later in pairwise(decoder.numbers) if later != before + 1]
    assert gaps == decoder.begins, "nothing is decoded without what it needs"
    while decoder.take():
        pass
    assert len(decoder.taken) + decoder.left_out == decoder.count


def test_without_a_keyframe_nothing_is_given_and_for_how_long_is_known() -> None:
    decoder = Decoder(keyframes=10**6)
    decoder.held_up(50, each=0.4)  # far too slow
    left, begun = len(decoder.taken), decoder.clock.now
    while decoder.clock.now - begun < 40:
        decoder.clock.now += 0.04
        decoder.arrive()
        assert not decoder.take()
    assert left + decoder.left_out == decoder.count
    assert decoder.missing == pytest.approx(40, abs=0.5)


def test_what_arrives_late_waits_for_less_and_all_that_waits_is_bounded() -> None:
    decoder = Decoder(keyframes=300)
    for _ in range(2000):
        decoder.arrive()
    while decoder.take():
        pass
    assert decoder.numbers[0] % 300 == 0 and decoder.numbers[-1] == 1999 and len(decoder.numbers) <= 1024
    assert decoder.left_out == 2000 - len(decoder.numbers)
    large = Decoder(keyframes=1000)
    for _ in range(100):
        large.arrive(nbytes=1 << 20)
    assert not large.take() and large.left_out == 100, "there is no keyframe to go on from"
    late = Decoder(keyframes=2)
    for number in range(4):
        late.arrive(late=1.0 - 0.2 * number)
    assert late.take() and late.numbers == [2] and late.ages == [pytest.approx(0.6)], "none is fresh: the newest"


def late_by(pairs: Iterable[tuple[float | None, float]]) -> list[float]:
    """Lateness of frames by their stamps and arrivals."""
    clock = Clock()
    lateness, found = Lateness(clock), []
    for stamp, clock.now in pairs:
        found.append(lateness.of(stamp))
    return found


@pytest.mark.parametrize("rate", [1 - 1e-4, 1, 1 + 1e-4])
@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_neither_drift_nor_jitter_is_lateness(rate: float, jitter: float) -> None:
    """A clock that is 100 ppm wrong, over three hours in which it loses or gains more than a second."""
    chance = random.Random(3)
    arrivals = accumulate((k / 5 + jitter * chance.random() for k in range(3 * 3600 * 5)), max)
    found = late_by((rate * k / 5, arrived) for k, arrived in enumerate(arrivals))
    assert max(found) <= (0.25 if jitter else 0), "the least late of 15 frames"


def test_bursts_and_clocks_that_jump_are_not_late() -> None:
    """Two seconds of video at once, for ten minutes; then the stamps go an hour ahead, back, wrap, and say nothing."""
    burst = [(k / 25, 2.0 * (k // 50 + 1)) for k in range(600 * 25)]
    jumps = [(k / 25 + stamp, 602.0 + k / 25) for stamp in (4000, 50, 95443.7, 0) for k in range(100)]
    jumps = [(stamp, 602.0 + k / 25) for k, (stamp, _) in enumerate(jumps)]
    assert max(late_by([*burst, *jumps, (None, 700.0), (float("nan"), 700.0)])) < 0.01


@pytest.mark.parametrize("back", [0.2, 0.8, 2.0])
def test_a_clock_that_is_set_back_and_a_frame_ahead_of_it_make_nothing_late(back: float) -> None:
    after = [(100 + k / 25 - back * (k >= 50), k / 25) for k in range(400)]
    ahead = [(300 + k / 25 + back * (k == 50), 20 + k / 25) for k in range(400)]
    assert max(late_by([*after, *ahead])) == pytest.approx(0.0, abs=1e-3)


def test_what_was_held_up_is_late_by_as_much_until_it_is_read() -> None:
    """Six seconds: nothing is read, then all at once, then as it comes."""
    arrivals = [k / 25 if k < 250 else max(16.0, k / 25) for k in range(750)]
    found = late_by((1000 + k / 25, at) for k, at in enumerate(arrivals))
    assert found[:250] == [0.0] * 250
    assert found[250:401] == pytest.approx([6.0 - k / 25 for k in range(151)], abs=0.02)
    assert max(found[401:]) < 0.01


@pytest.mark.parametrize(
    ("arrival", "since"),
    [(lambda stamp: stamp + 2 * (stamp >= 60), 63), (lambda stamp: 1.25 * stamp, 5.5)],
    ids=["slower", "frames counted"],
)
def test_lateness_that_stays_is_the_streams_own(arrival: Callable[[float], float], since: float) -> None:
    """Two seconds more from the first minute on; stamps of 25 frames a second that come at 20.

    The least late of three seconds is late by half a second from the second `since` on, for five seconds.
    """
    stamps = [k / 25 for k in range(3000)]
    found = late_by((stamp, arrival(stamp)) for stamp in stamps)
    late = [arrival(stamp) for stamp, one in zip(stamps, found, strict=True) if one > BUDGET]
    assert (late[0], late[-1]) == (pytest.approx(since, abs=0.1), pytest.approx(since + 5, abs=0.1))
    assert set(found[stamps.index(40.0 if since < 60 else 80.0) :]) == {0.0}


def placed(*pairs: tuple[float | None, float]) -> tuple[LiveTimes, list[float | None]]:
    times = LiveTimes()
    return times, [times.place(stamp, arrived) for stamp, arrived in pairs]


def test_stamps_that_rise_keep_their_distances_whatever_the_network_does() -> None:
    arrivals = (0.0, 0.4, 0.4, 0.41, 0.5, 0.9, 0.9, 0.9)
    times, seconds = placed(*((100 + k / 10, 5 + at) for k, at in enumerate(arrivals)))
    assert seconds == pytest.approx([5 + k / 10 for k in range(8)], abs=0.01)
    assert (times.repeated, times.late, times.jumps) == (0, 0, 0)


@pytest.mark.parametrize(
    ("stamps", "left_out", "jumps"),
    [
        ([0.0, 0.1, 0.1, 0.2, 0.2, 0.3], [2, 4], 0),
        ([0.0, 0.3, 0.1, 0.2, 0.4, 0.5], [2, 3], 0),
        ([50.0, 50.1, 50.2, 3.0, 3.1, 3.2], [], 1),
        ([0.0, 0.1, 3600.2, 3600.3, 3600.4, 3600.5], [], 1),
        ([95443.5, 95443.6, 95443.7, 0.1, 0.2, 0.3], [], 1),  # 2^33 ticks of 90 kHz
        ([0.0, 0.1, float("nan"), 0.3, 0.4, 0.5], [], 0),
    ],
    ids=["repeat", "late", "back", "an hour ahead", "wrap", "no number"],
)
def test_clocks_that_misbehave_are_mended_and_counted(stamps: list[float], left_out: list[int], jumps: int) -> None:
    times, seconds = placed(*((stamp, 7 + k / 10) for k, stamp in enumerate(stamps)))
    assert [k for k, second in enumerate(seconds) if second is None] == left_out
    assert times.repeated + times.late == len(left_out) and times.jumps == jumps
    kept = [(k, second) for k, second in enumerate(seconds) if second is not None]
    assert [second for _, second in kept] == pytest.approx([7 + k / 10 for k, _ in kept], abs=0.21)


def test_a_clock_that_drifts_for_weeks_stays_with_ours() -> None:
    times, worst = LiveTimes(), 0.0
    for second in range(14 * 86_400 // 20):  # one part in a thousand fast: 20 minutes in all
        arrived = 20.0 * second
        worst = max(worst, abs((times.place(arrived * 1.001, arrived) or 0.0) - arrived))
    assert worst < 0.1 and times.jumps == 0


@given(st.lists(st.tuples(st.none() | st.floats(), st.floats(0, 100)), max_size=30))
def test_times_rise_whatever_comes(pairs: list[tuple[float | None, float]]) -> None:
    times, arrived, last = LiveTimes(), 0.0, -1.0
    for stamp, passed in pairs:
        arrived += passed
        second = times.place(stamp, arrived)
        if second is not None:
            assert second > last
            last = second


def test_what_was_held_up_at_first_does_not_stay_ahead_of_its_arrival() -> None:
    arrived = [2.0] * 50 + [2.0 + k / 25 for k in range(1, 501)]  # two seconds of frames at once, then as they happen
    _, seconds = placed(*((k / 25, at) for k, at in enumerate(arrived)))
    assert seconds[0] == 2.0 and seconds[50] == pytest.approx(4, abs=0.25)
    assert seconds[-1] == pytest.approx(22, abs=0.1)


def test_another_connection_begins_another_clock() -> None:
    times = LiveTimes()
    assert times.place(1000.0, 1.0) == 1.0
    times.connected()
    assert times.place(3.0, 60.0) == 60.0
    assert times.jumps == 0


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:hunter2@cam:554/s1", "rtsp://admin:***@cam:554/s1"),
        ("RTSP://admin:a:hunter2@cam/", "RTSP://admin:***@cam/"),
        ("rtsp://admin:a@hunter2@cam/", "rtsp://admin:***@cam/"),
        ("rtsp://admin:a/hunter2?b#c@cam/s", "rtsp://admin:***@cam/s"),
        ("rtsp://hunter2@cam/s", "rtsp://***@cam/s"),
        ("http://cam/v?user=a&password=hunter2&ch=1", "http://cam/v?user=a&password=***&ch=1"),
        ("http://cam/v?TOKEN=hunter2", "http://cam/v?TOKEN=***"),
        ("rtsp://cam/user=admin_password=hunter2_channel=1.sdp", "rtsp://cam/user=admin_password=***"),
        ("rtsp://[fe80::1]:554/s?channel=2", "rtsp://[fe80::1]:554/s?channel=2"),
        ("udp://@:1234", "udp://@:1234"),
        ("clips/a@b.mp4", "clips/a@b.mp4"),
    ],
)
def test_names_of_addresses_hold_no_password(address: str, shown: str) -> None:
    assert masked(address) == shown and SECRET not in shown
    assert is_address(address) == ("://" in address)


def test_addresses_of_other_kinds_are_refused_without_their_password() -> None:
    assert checked_address("RTSP://Cam/S1") == "rtsp://Cam/S1"
    assert (device_number("0"), device_number("12"), device_number("x"), device_number("1234")) == (0, 12, None, None)
    for address, message in (("ftp://a:hunter2@cam/x", "not an address that is read"), ("rtsp://", "names no host")):
        with pytest.raises(InputError, match=message) as caught:
            checked_address(address)
        assert SECRET not in str(caught.value)
