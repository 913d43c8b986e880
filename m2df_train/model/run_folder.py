"""Where runs are kept, and what the weights in a run's folder are called.

Nothing here needs PyTorch: commands look for a run before they load it.
"""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
BEST, LAST = "best.safetensors", "last.safetensors"
RECIPE = "recipe.yaml"


def newest_checkpoint(root: Path = RUNS) -> Path | None:
    """The best checkpoint of the run that wrote one last, or None."""
    found = sorted(root.glob(f"*/{BEST}"), key=lambda p: p.stat().st_mtime) if root.is_dir() else []
    return found[-1] if found else None
