"""Whole exports as tests need them: in this process or one of their own, tracing nothing that was traced before."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx_ir
import torch
from torch.onnx._internal.exporter import _registration

from m2df_export.graphs import specs

ROOT = Path(__file__).parents[2]
MODULES = {
    specs.VisualGraph: "visual",
    specs.TextGraph: "text",
    specs.SupportGraph: "support",
    specs.QueryGraph: "query",
}


def save(checkpoint, folder):
    """Write a checkpoint as a run would leave it."""
    from m2df_train.model.checkpoint import save_checkpoint

    folder.mkdir(parents=True)
    save_checkpoint(folder / "best.safetensors", checkpoint)


def export(cwd, *args):
    """Run m2df-export in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "m2df_export.commands.export", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def export_here(patch, cwd, *args):
    """Run m2df-export inside this process, which has PyTorch, with the exit code and streams of one of its own."""
    from m2df_export.commands.export import cli
    from m2df_runtime.commands.console import guarded

    words = [str(arg) for arg in args]
    patch.chdir(cwd)
    patch.delenv("M2DF_DEBUG", raising=False)
    patch.setattr(sys, "argv", ["m2df-export", *words])
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
        code = guarded(lambda: cli.main(words, "m2df-export", standalone_mode=False))
    return subprocess.CompletedProcess(args, code, out.getvalue(), said.getvalue())


def take_graphs(patch, folder, *anew):
    """Have graphs come from the fp32 files of a folder, for as long as `patch` lasts: tracing takes 2 to 20 s each.

    Those named are traced, once however often they are asked for. All that follows is the export's own.
    """
    trace, made = torch.onnx.export, {}

    def export(module, *args, **options):
        graph = MODULES[type(module)]
        if graph not in anew:
            return SimpleNamespace(model=onnx_ir.load(folder / f"{graph}.onnx"))
        if graph not in made:
            made[graph] = trace(module, *args, **options)
        return made[graph]

    patch.setattr(torch.onnx, "export", export)


def read_operators_once(patch):
    """Have the exporter read its library of operators once per process: it reads 500 sources, 2 s, for every graph."""
    library = _registration.onnxscript_apis
    patch.setattr(library, "get_torchlib_ops", functools.cache(library.get_torchlib_ops))
