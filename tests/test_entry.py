"""Every command as its installed script starts it: help, closed streams, a reader that leaves, Ctrl-C while loading."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from m2df_runtime import __version__

ROOT = Path(__file__).parents[1]
SCRIPTS = dict(
    re.findall(r'^(m2df-\w+) = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
)
SUBCOMMANDS = {
    "m2df-train": [["import"], ["prepare"]],
    "m2df-export": [["engines"], ["triton"], ["verify"]],
}


def start(script: str, *args: object, shell: str = '"$@"', **env: str) -> subprocess.CompletedProcess[str]:
    """Run what pip writes for a script, through a shell that may close or redirect its streams."""
    module, _, function = SCRIPTS[script].partition(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {script!r}; sys.exit({function}())"
    paths = os.pathsep.join(filter(None, [env.pop("FIRST", ""), str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env, "PYTHONPATH": paths},
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_in_both_forms_with_examples_and_the_version(script):
    for words in [[], *SUBCOMMANDS.get(script, [])]:
        short = start(script, *words, "-h")
        assert (short.returncode, short.stderr) == (0, "")
        assert short.stdout.startswith(" ".join(["Usage:", script, *words]))
        assert "Examples:" in short.stdout
        assert "-h, --help" in short.stdout
    done = start(script, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{script}, version {__version__}\n", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_closed_streams_change_no_exit_code(script):
    helped = start(script, "--help", shell='"$@" <&- >&- 2>&-')
    assert (helped.returncode, helped.stdout, helped.stderr) == (0, "", "")
    for shell in ('"$@" <&- >&-', '"$@" 2>&-'):
        failed = start(script, "stray", shell=shell)
        assert (failed.returncode, failed.stdout) == (2, "")
        assert ("2>&-" in shell) or "unexpected argument 'stray'" in failed.stderr.splitlines()[-1]


def test_a_whole_run_with_closed_streams_answers_and_harms_no_file(
    tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path
):
    clips = ("--support", support_dir, "--query", query_dir)
    closed = start("m2df-run", "--bundle", tiny_bundle, *clips, "--json", shell='"$@" <&- >&- 2>&-')
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")
    # The bank was written with the numbers of standard output and error free to be taken.
    done = start("m2df-run", "--bundle", tiny_bundle, *clips, "--json", shell='"$@" <&- 2>&-')
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 3, "")


def test_output_that_cannot_be_written_is_one_line(tiny_bundle: Path, support_dir: Path, query_dir: Path):
    clips = ("--bundle", tiny_bundle, "--support", support_dir, "--query", query_dir)
    full = start("m2df-run", *clips, shell='"$@" >/dev/full')
    assert (full.returncode, full.stderr) == (2, "error: standard output: No space left on device\n")
    mute = start("m2df-run", *clips, "--query", "no-such.mp4", "--json", shell='"$@" 2>/dev/full')
    assert (mute.returncode, mute.stdout.count("\n")) == (1, 3)


def test_a_reader_that_leaves_ends_the_command_without_a_word(tiny_bundle: Path, support_dir: Path, query_dir: Path):
    # The left side begins once the right one is gone: opening a pipe to read needs a writer, and the other way round.
    shell = 'mkfifo "$PIPE" && { : <"$PIPE" & "$@" >"$PIPE"; }'
    clips = ("--bundle", tiny_bundle, "--support", support_dir, "--query", query_dir)
    for args in (clips, ("--help",)):
        pipe = support_dir.parent / f"pipe{len(args)}"
        done = start("m2df-run", *args, shell=shell, PIPE=str(pipe))
        assert (done.returncode, done.stderr) == (1, "")


# Loaded first by every Python that finds it: sends the signal when a certain module begins to load.
HOOK = """
import os, signal, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Finder)
"""
MOMENTS = [
    *[(script, "click", ("--help",)) for script in SCRIPTS],
    ("m2df-run", "m2df_runtime.commands.console", ("--help",)),
    ("m2df-run", "onnxruntime.capi", ()),
    ("m2df-run", "m2df_runtime.match.matcher", ()),
    ("m2df-eval", "numpy", ()),
    ("m2df-train", "torch", ()),
    ("m2df-export", "torch", ("--model", "ViT-B-32", "--out", "/no/such/place")),
]


@pytest.mark.parametrize(("script", "module", "args"), MOMENTS)
def test_ctrl_c_while_modules_load_is_one_word(script, module, args, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    done = start(script, *args, FIRST=str(tmp_path), INTERRUPT_AT=module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_a_thread_in_a_librarys_code_changes_no_exit_code() -> None:
    """As at the end of live cameras: one is compressed or written while the process ends."""
    code = """
import threading
import click, cv2, numpy
from m2df_runtime.commands.console import main_entry
from m2df_runtime.errors import CheckFailed

@click.command()
def command():
    picture = numpy.zeros((480, 640, 3), numpy.uint8)
    def work():
        while True:
            cv2.imencode(".jpg", picture)
    threading.Thread(target=work, name="m2df clips", daemon=True).start()
    click.echo("done")
    raise CheckFailed("some")

main_entry(command, [])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "done\n", "error: some\n")
