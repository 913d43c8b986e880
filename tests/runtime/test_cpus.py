"""What the processor is, and the processors a process may use, by its affinity and its control groups."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from m2df_runtime.cpus import MAX_THREADS, available_cpus, cgroup_quota, processor_name, thread_count
from m2df_runtime.errors import InputError

QUIET = "30 1 0:1 / / rw - ext4 /dev/vda rw\n"


def process(folder: Path, mounts: str, groups: str) -> Path:
    (folder / "mountinfo").write_text(QUIET + mounts)
    (folder / "cgroup").write_text(groups)
    return folder


def limit(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def unified(tmp_path: Path, root: str = "/", group: str = "/a/b") -> Path:
    escaped = str(tmp_path / "my groups").replace(" ", r"\040")
    return process(tmp_path, f"31 30 0:2 {root} {escaped} rw shared:1 - cgroup2 cgroup2 rw\n", f"0::{group}\n")


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nmodel name\t: EPYC\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\n", "EPYC (AVX2)"),
        (
            "model name\t: EPYC\nflags\t: avx2 avx512f avx512_vnni avx512_bf16\n\n",
            "EPYC (AVX2 AVX-512 VNNI BF16)",
        ),
        ("model name : Xeon\nflags : avx2 avx512f avx512_vnni amx_bf16 amx_tile\n", "Xeon (AVX2 AVX-512 VNNI AMX)"),
        ("model name : Old\nflags : fpu sse2\n\nmodel name : Other\nflags : avx2\n", "Old"),
        ("processor : 0\nFeatures : fp asimd i8mm bf16\n", f"{platform.processor() or platform.machine()} (I8MM BF16)"),
        ("", platform.processor() or platform.machine()),
    ],
)
def test_a_processor_is_known_by_its_name_and_what_engines_use_of_it(
    tmp_path: Path, cpuinfo: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor_name(tmp_path / "cpuinfo") == expected


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        ("150000 100000", "max 100000", 1.5),
        ("max 100000", "50000 100000", 0.5),
        ("400000 100000", "200000 100000", 2.0),
        ("max 100000", "max 100000", None),
        ("nonsense", "", None),
    ],
)
def test_the_least_quota_of_a_group_and_those_above_it_counts(
    tmp_path: Path, own: str, above: str, expected: float | None
) -> None:
    limit(tmp_path / "my groups" / "a" / "b", cpu__max=own)
    limit(tmp_path / "my groups" / "a", cpu__max=above)
    assert cgroup_quota(unified(tmp_path)) == expected


def test_a_mount_may_begin_below_the_root_as_in_a_container(tmp_path: Path) -> None:
    limit(tmp_path / "my groups", cpu__max="300000 100000")
    assert cgroup_quota(unified(tmp_path, root="/docker/1", group="/docker/1")) == 3
    limit(tmp_path / "my groups" / "in", cpu__max="100000 100000")
    assert cgroup_quota(unified(tmp_path, root="/docker/1", group="/docker/1/in")) == 1
    assert cgroup_quota(unified(tmp_path, root="/", group="/../../host/name")) == 3


@pytest.mark.parametrize(("quota", "expected"), [("250000\n", 2.5), ("-1\n", None)])
def test_the_first_version_has_other_files(tmp_path: Path, quota: str, expected: float | None) -> None:
    limit(tmp_path / "cpu" / "job", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000\n")
    limit(tmp_path / "cpuset" / "job", cpu__cfs_quota_us="1\n", cpu__cfs_period_us="100000\n")  # another hierarchy's
    mounts = f"31 30 0:2 / {tmp_path / 'cpuset'} rw - cgroup cgroup rw,cpuset\n"
    mounts += f"32 30 0:3 / {tmp_path / 'cpu'} rw - cgroup cgroup rw,cpu,cpuacct\n"
    assert cgroup_quota(process(tmp_path, mounts, "4:cpuset:/\n3:cpu,cpuacct:/job\n0::/\n")) == expected


def test_nothing_is_known_outside_of_linux(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None


def test_a_pinned_process_counts_what_it_is_pinned_to() -> None:
    """Sessions start as many threads, so ONNX Runtime pins none to a processor that it may not use."""
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from m2df_runtime import cpus; "
        "print(cpus.available_cpus(), cpus.thread_count(None)); from m2df_runtime.commands import run; run.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "rejection",
        "each of these queries is named after the action that it shows",
    ]
    assert done.stdout.startswith("1 1\n")


def test_threads_asked_for_are_bounded() -> None:
    assert 1 <= thread_count(None) <= available_cpus() <= len(os.sched_getaffinity(0))
    assert thread_count(3) == 3
    for threads in (0, -1, MAX_THREADS + 1, 100_000):
        with pytest.raises(InputError, match=f"{threads} threads: from 1 to 256"):
            thread_count(threads)
