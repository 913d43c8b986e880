"""What live sources are made of, by itself: which frames are kept, their times, pauses, names without passwords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2df_runtime.errors import InputError
from m2df_runtime.stream.policy import Freshest
from m2df_runtime.stream.sources.addresses import checked_address, device_number, is_address, masked
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
