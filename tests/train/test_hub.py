"""Pretrained models without a network: what is on the machine is used, what is not is refused at once."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from m2df_runtime.errors import InputError
from m2df_train.model.backbone import load_backbone, rebuild_backbone

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub at which nobody answers, and an empty cache of what was fetched from it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_what_was_fetched_before_is_used_without_a_network(nobody: Path):
    model = rebuild_backbone("tiny", CONFIG)
    snapshot = nobody / "models--me--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (nobody / "models--me--tiny" / "refs").mkdir()
    (nobody / "models--me--tiny" / "refs" / "main").write_text("0" * 40)
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    save_file(model.clip.state_dict(), snapshot / "open_clip_model.safetensors")
    loaded = load_backbone("hf-hub:me/tiny")
    assert torch.equal(loaded.log_scale, model.log_scale)
    assert all(torch.equal(a, b) for a, b in zip(loaded.clip.parameters(), model.clip.parameters(), strict=True))
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_is_switched_off_is_not_asked(nobody: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"not on this machine, and cannot be fetched \(127\.0\.0\.1: .*refused"):
        load_backbone("hf-hub:me/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be fetched \(HF_HUB_OFFLINE is set\).*local-dir:PATH"):
        load_backbone("ViT-B-32", "openai")


def test_without_a_network_one_question_is_asked_and_the_answer_says_what_to_do(tmp_path: Path, run_module):
    # A proxy that hangs up on everyone. Libraries would knock six times for each file they look for.
    knocks = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    proxy.accept()[0].close()
                    knocks.append(1)

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        network = {"https_proxy": address, "HTTPS_PROXY": address, "HF_HOME": str(tmp_path / "hub"), "no_proxy": ""}
        args = ("--model", "ViT-B-32", "--pretrained", "openai", "--out", tmp_path / "out")
        done = run_module("m2df_export.commands.export", *args, **network)
    assert (done.returncode, done.stdout, len(knocks)) == (2, "", 1)
    assert done.stderr.count("\n") == 1
    asked = "ViT-B-32 with weights 'openai': not on this machine, and cannot be fetched (huggingface.co: "
    assert done.stderr.startswith(f"error: {asked}")
    assert "m2df-train --set model=local-dir:PATH" in done.stderr
    assert done.stderr.endswith("m2df-export --model local-dir:PATH)\n")
