"""Checkpoints of the two public repositories, as files in every form they come in, become checkpoints of m2df."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import read_operators_once
from reference import Reference
from safetensors.torch import load_file
from test_heads_reference import episode_of

from m2df_runtime.errors import InputError
from m2df_train.commands.train import cli
from m2df_train.importing.importer import ImportRequest, benchmark_labels, import_official
from m2df_train.model.backbone import normalised_pixels, rebuild_backbone
from m2df_train.model.checkpoint import load_checkpoint
from m2df_train.model.heads import deterministic_head

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
VISION = {
    "vit": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
    "rn": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
}
HEADS = {
    "m2df": "weights_mdmf_d64.safetensors",
    "m2df-deep": "weights_mdmf_d64_depth2.safetensors",
    "fsar": "weights_clipfsar_d64.safetensors",
    "fsar-deep": "weights_clipfsar_d64_depth2.safetensors",
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_clip(vision, seed=0):
    torch.manual_seed(seed)
    config = {"embed_dim": 64, "quick_gelu": True, "vision_cfg": VISION[vision], "text_cfg": TEXT}
    clip = rebuild_backbone(f"tiny-{vision}", config)
    for module in clip.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.2)
    return clip


@pytest.fixture(scope="module")
def towers():
    """The image towers that the files hold, and what they compute."""
    return {vision: tiny_clip(vision) for vision in VISION}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """A CLIP with another image tower and the text tower the imports take, as an open_clip model folder."""
    return write_model(tmp_path_factory.mktemp("text"), tiny_clip("vit", seed=7))


def write_model(folder: Path, clip) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": clip.config, "preprocess_cfg": {}}))
    torch.save(clip.clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


@pytest.fixture
def head_state(shared_dir):
    """Official head weights by name, fresh for every test."""
    return lambda name: {k: v.float() for k, v in load_file(shared_dir / "reference" / HEADS[name]).items()}


def tower_state(clip):
    state = clip.clip.state_dict()
    return {k.replace("visual.", "backbone.", 1): v for k, v in state.items() if k.startswith("visual.")}


def m2df_final(state):
    return state


def m2df_periodic(state):
    """As the training script writes it, with two GPUs: only the backbone is wrapped."""
    state = {
        k.replace("backbone.", "backbone.module.", 1) if k.startswith("backbone.") else k: v for k, v in state.items()
    }
    return {
        "iteration": 14000,
        "model_state_dict": OrderedDict(state),
        "optimizer_state_dict": {
            "state": {0: {"step": torch.tensor(1.0)}},
            "param_groups": [{"lr": 1e-6, "params": [0]}],
        },
        "scheduler": {"milestones": Counter({1000000: 1}), "gamma": 1, "last_epoch": 14000},
    }


def fsar_file(state):
    state = {f"head.{k}": v for k, v in state.items()}
    return {"epoch": 3, "model_state": OrderedDict(state), "optimizer_state": {}, "cfg": '{"TRAIN": {}}'}


def fsar_fork(state):
    return {**fsar_file({}), "model_state": {f"module.head.{k}": v for k, v in state.items()}}


def write(path, head, clip, container=m2df_final):
    torch.save(container({**tower_state(clip), **head}), path)
    return path


def run_import(path, text_model, **options):
    options = {"dataset": "hmdb51", "text_model": text_model, **options}
    return import_official(ImportRequest(path, **options))


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(
    ("head", "container", "preset"),
    [
        ("m2df", m2df_final, "official-m2df"),
        ("m2df", m2df_periodic, None),
        ("fsar", fsar_file, "official-fsar"),
        ("fsar", fsar_fork, None),
    ],
)
def test_files_of_every_form_give_the_tower_and_head_they_hold(
    tmp_path, towers, text_model, head_state, vision, head, container, preset
):
    path = write(tmp_path / "official.pt", head_state(head), towers[vision], container)
    checkpoint, report = run_import(path, text_model, preset=preset)
    assert checkpoint.head_name == {"m2df": "m2df", "fsar": "clip-fsar"}[head]
    assert report.missing == []
    stored = container({**tower_state(towers[vision]), **head_state(head)})
    stored = stored.get("model_state_dict", stored.get("model_state", stored))
    assert {*report.used, *report.duplicates, *report.unused} == set(stored)
    assert len(report.used) + len(report.duplicates) + len(report.unused) == len(stored)
    size = checkpoint.backbone.image_size
    assert checkpoint.clip.size == size == VISION[vision]["image_size"]
    frames = torch.randint(0, 256, (2, 8, size, size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = towers[vision].visual(normalised_pixels(frames, checkpoint.clip)).view(2, 8, 64)
        torch.testing.assert_close(checkpoint.backbone.encode_frames(frames, checkpoint.clip), expected)


def test_the_text_tower_is_the_named_models_and_not_the_files(tmp_path, towers, text_model, head_state):
    path = write(tmp_path / "official.pt", head_state("m2df"), towers["rn"])
    checkpoint, report = run_import(path, text_model)
    tokens = torch.randint(1, 49408, (3, 77))
    with torch.inference_mode():
        expected = tiny_clip("vit", seed=7).encode_text(tokens)
        torch.testing.assert_close(checkpoint.backbone.encode_text(tokens), expected)
    assert report.text_model == text_model
    assert "official-m2df" in checkpoint.source.training.values()


REFERENCES = [
    ("m2df", "mdmf_5w1s_q5_sorted.npz", {}, "eval_draw"),
    ("m2df", "mdmf_5w1s_q5_sorted.npz", {}, "eval_argmax"),
    ("m2df", "mdmf_5w5s_q7_shuffled.npz", {"shot": 5}, "eval_argmax"),
    ("m2df", "mdmf_5w1s_q5_sorted.npz", {"dataset": "kinetics100"}, "eval_draw_single"),
    ("m2df", "mdmf_3w2s_q1_shuffled_smallnorm.npz", {"settings": ["head.options.pps.eval=none"]}, "eval_off"),
    ("m2df-deep", "mdmf_5w1s_q6_depth2.npz", {}, "eval_draw"),
    ("fsar", "clipfsar_5w1s_q5_sorted.npz", {}, "eval_merge0_single0"),
    ("fsar", "clipfsar_5w5s_q7_shuffled.npz", {"shot": 5}, "eval_merge1_single0"),
    (
        "fsar",
        "clipfsar_5w5s_q7_shuffled.npz",
        {"settings": ["head.options.otam.bidirectional=false"]},
        "eval_merge0_single1",
    ),
    ("fsar", "clipfsar_5w2s_q5_t4.npz", {"settings": ["clip.frames=4"]}, "eval_merge0_single0"),
    ("fsar-deep", "clipfsar_5w1s_q6_depth2.npz", {}, "eval_merge0_single0"),
]


@pytest.mark.parametrize(("head", "file", "options", "run"), REFERENCES, ids=[f"{r[1]}-{r[3]}" for r in REFERENCES])
def test_the_imported_head_gives_the_official_logits(
    shared_dir, tmp_path, towers, text_model, head_state, head, file, options, run
):
    path = write(tmp_path / "official.pt", head_state(head), towers["vit"])
    checkpoint, _ = run_import(path, text_model, **options)
    ref = Reference(shared_dir / "reference", file, torch.float32)
    m2df = head.startswith("m2df")
    episode = episode_of(ref, "text_features_test", "text_features_test" if m2df else "text_features_train")
    model = checkpoint.head
    if m2df:
        assert model.options.pps.eval == ("none" if run == "eval_off" else "sample")
        model = deterministic_head(model) if run == "eval_argmax" else model
    with torch.inference_mode():
        ref.check(run, "dis_logits" if m2df else "logits", model(episode).logits)


def test_keys_that_are_not_needed_are_reported_and_may_be_absent(tmp_path, towers, text_model, head_state):
    full, report = run_import(write(tmp_path / "full.pt", head_state("m2df"), towers["vit"]), text_model)
    assert len(report.unused) == 4
    assert all(key.startswith(("context_conv11.", "context_conv22.")) for key in report.unused)
    assert len(report.duplicates) == 3 * 2 * 3
    assert all(".net." in key for key in report.duplicates)
    assert report.used["context_local.layers.0.0.norm.weight"] == "head.global_view.fusion.layers.0.norm.weight"
    assert report.used["backbone.proj"] == "backbone.clip.visual.proj"
    needed = {key: value for key, value in head_state("m2df").items() if key in report.used}
    bare, report = run_import(write(tmp_path / "bare.pt", needed, towers["vit"]), text_model)
    assert report.duplicates == {} and report.unused == []
    for key, value in full.head.state_dict().items():
        torch.testing.assert_close(bare.head.state_dict()[key], value, rtol=0, atol=0)


def test_both_names_of_weight_norm_are_read(tmp_path, towers, text_model, head_state):
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    renamed = {}
    for key, value in head_state("m2df").items():
        stem, _, last = key.rpartition(".")
        renamed[f"{stem}.{new[last]}" if last in new else key] = value
    classic, _ = run_import(write(tmp_path / "a.pt", head_state("m2df"), towers["vit"]), text_model)
    modern, report = run_import(write(tmp_path / "b.pt", renamed, towers["vit"]), text_model)
    assert len(report.duplicates) == 3 * 2 * 3
    for key, value in classic.head.state_dict().items():
        torch.testing.assert_close(modern.head.state_dict()[key], value, rtol=0, atol=0)


def test_counters_of_batch_norm_may_be_missing(tmp_path, towers, text_model, head_state):
    state = {k: v for k, v in {**tower_state(towers["rn"]), **head_state("fsar")}.items() if "num_batches" not in k}
    torch.save(fsar_file(state), tmp_path / "f.pyth")
    _, report = run_import(tmp_path / "f.pyth", text_model)
    assert report.missing
    assert all(key.endswith("num_batches_tracked") for key in report.missing)


class Runs:
    """An object whose reading would run code."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda s: s.update({"tcn.network.1.net.4.bias": s["tcn.network.1.net.4.bias"] + 1}), "two copies .* differ"),
        (lambda s: s.pop("context_local.layers.0.1.net.0.weight"), "head does not fit"),
        (
            lambda s: s.update({"transformers.0.k_linear.weight": torch.zeros(2), "x": torch.zeros(1)}),
            r"k_linear.weight' \(and 1 more\) belongs to no known head",
        ),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith(("context", "tcn"))], "no fusion encoder"),
        (lambda s: s.pop("backbone.ln_post.bias"), "lacks backbone.ln_post.bias"),
        (lambda s: s.update({"backbone.layer1.0.conv1.weight": torch.zeros(2)}), "which no such tower has"),
        (lambda s: s.update({"backbone.proj": torch.zeros(128, 63)}), "for 64 features, its image tower gives 63"),
        (lambda s: s.update({"backbone.positional_embedding": torch.zeros(18, 128)}), "18 rows"),
        (lambda s: s.update({"backbone.conv1.weight": torch.zeros(128)}), "4 axes expected"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("backbone.")], "holds no backbone"),
        (lambda s: s.update({"head.scale": s["scale"]}), "both name the weight 'scale'"),
        (lambda s: s.update({"scale": 3}), "'scale' is no weight"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(tmp_path, towers, text_model, head_state, damage, reason):
    state = {**tower_state(towers["vit"]), **head_state("m2df")}
    damage(state)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(InputError, match=reason) as error:
        run_import(tmp_path / "broken.pt", text_model)
    assert "broken.pt" in str(error.value)


def test_a_backbone_that_is_not_clips_is_refused(tmp_path, text_model, head_state):
    state = {**head_state("fsar"), "backbone.0.weight": torch.zeros(64, 3, 7, 7)}
    torch.save(fsar_file(state), tmp_path / "resnet.pyth")
    with pytest.raises(InputError, match="no image tower of CLIP"):
        run_import(tmp_path / "resnet.pyth", text_model)


def test_nothing_in_a_file_is_executed(tmp_path, text_model, capsys):
    torch.save({"model_state": {"head.scale": torch.ones(1)}, "cfg": Runs()}, tmp_path / "evil.pyth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Runs(), protocol=2))
    (tmp_path / "noise.pt").write_bytes(b"no checkpoint at all")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("evil.pyth", "plain.pt", "noise.pt", "empty.pt", "list.pt", "absent.pt"):
        with pytest.raises(InputError, match=name):
            run_import(tmp_path / name, text_model)
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_no_file_of_weights(tmp_path, towers, text_model, head_state):
    archive = tmp_path / "ViT-B-16.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), archive)
    with pytest.raises(InputError, match=r"ViT-B-16.pt: a TorchScript archive.*CLIP-MDMF or CLIP-FSAR wrote"):
        run_import(archive, text_model)
    path = write(tmp_path / "official.pt", head_state("m2df"), towers["vit"])
    with pytest.raises(InputError, match=r"ViT-B-16.pt: a TorchScript archive.*open_clip_model.safetensors"):
        run_import(path, "ViT-B-16-quickgelu", text_pretrained=str(archive))


def test_the_wrong_preset_is_refused(tmp_path, towers, text_model, head_state):
    path = write(tmp_path / "official.pt", head_state("fsar"), towers["vit"], fsar_file)
    with pytest.raises(InputError, match=r"holds a head of CLIP-FSAR \(import it with --preset official-fsar\)"):
        run_import(path, text_model, preset="official-m2df")


def test_all_wrong_settings_are_reported_at_once(tmp_path, towers, text_model, head_state):
    path = write(tmp_path / "official.pt", head_state("m2df"), towers["vit"])
    settings = ["head.options.otam.lamda=1", "clip.framez=3", "prompts=x", "prompt"]
    with pytest.raises(InputError) as error:
        run_import(path, text_model, settings=settings)
    for expected in ("head.options.otam.lamda", "clip.framez", "prompts: ", "--set prompt: "):
        assert expected in str(error.value)
    for setting, reason in (
        ("clip.size=64", "takes 32"),
        ("prompt=x", "exactly one"),
        ("clip.sampler.eval=segment", r"clip\.sampler\.eval: segment is random"),
        ("clip.pixel_norm=0.5", r"clip\.pixel_norm"),
        ("head.name=clip-fsar", "head"),
    ):
        with pytest.raises(InputError, match=reason):
            run_import(path, text_model, settings=[setting])


def test_settings_stand_over_the_preset(tmp_path, towers, text_model, head_state):
    path = write(tmp_path / "official.pt", head_state("fsar"), towers["vit"], fsar_file)
    settings = ["clip.sampler.eval=uniform", "clip.pixel_norm={mean: [0, 0, 0], std: [2, 2, 2]}", "clip.resize=short"]
    checkpoint, _ = run_import(path, text_model, settings=[*settings, "head.options.text_visual_fusion.mode=combine"])
    clip = checkpoint.clip
    assert (clip.sampler, clip.resize, clip.mean, clip.std) == ("uniform", "short", (0.0,) * 3, (2.0,) * 3)
    assert checkpoint.head.options.text_visual_fusion.mode == "combine"
    assert checkpoint.source.training["sampler"] == {"train": "segment", "eval": "uniform"}
    checkpoint, _ = run_import(path, text_model, settings=["clip.pixel_norm=none"])
    assert (checkpoint.clip.mean, checkpoint.clip.std) == ((0.0,) * 3, (1.0,) * 3)


def test_a_text_tower_that_cannot_be_had_is_asked_for(tmp_path, towers, head_state):
    path = write(tmp_path / "official.pt", head_state("m2df"), towers["vit"])
    with pytest.raises(InputError, match="--text-model NAME"):
        run_import(path, None)
    with pytest.raises(InputError, match=r"in no checkpoint and cannot be had.*--text-pretrained FILE"):
        run_import(path, f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(InputError, match="--text-pretrained FILE"):
        run_import(path, "RN50-quickgelu", text_pretrained=str(tmp_path / "absent.pt"))


def test_a_text_tower_that_does_not_belong_is_refused(tmp_path, towers, head_state):
    path = write(tmp_path / "official.pt", head_state("m2df"), towers["vit"])
    for change, reason in (
        ({"embed_dim": 32}, "64 features, .* has 32"),
        ({"quick_gelu": False}, "another activation"),
    ):
        config = {"embed_dim": 64, "quick_gelu": True, "vision_cfg": VISION["vit"], "text_cfg": TEXT, **change}
        model = write_model(tmp_path / next(iter(change)), rebuild_backbone("other", config))
        with pytest.raises(InputError, match=reason):
            run_import(path, model)


def test_labels_are_spelled_as_the_repository_spells_them():
    assert benchmark_labels("hmdb51", "official")["shake_hands"] == "shake_hands"
    assert benchmark_labels("hmdb51", "paper")["shake_hands"] == "shake hands"
    assert benchmark_labels("hmdb51", "official")["brush_hair"] == "brush hair"
    something = benchmark_labels("ssv2-full", "official")
    assert (
        something["86"] == something["Pulling something from left to right"] == "Pulling [something] from left to right"
    )
    assert [len(benchmark_labels(d, "paper")) for d in ("hmdb51", "ucf101", "kinetics100")] == [51, 101, 100]


def test_the_checkpoint_keeps_what_reproduces_the_logits(tmp_path, towers, text_model, head_state, run_here):
    path = write(tmp_path / "epoch.pyth", head_state("fsar"), towers["vit"], fsar_file)
    out = tmp_path / "runs" / "mine"
    arguments = ["import", path, "--dataset", "ucf101", "--shot", "5", "--out", out, "--text-model", text_model]
    result = run_here(cli, *arguments, "--set", "prompt=a clip of {}", "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record == json.loads((out / "import.json").read_text())
    assert record["preset"] == "official-fsar"
    assert record["used"]["head.scale"] == "head.text_scale"
    assert record["missing"] == [] == record["unused"]
    checkpoint = load_checkpoint(out)
    assert (checkpoint.clip.resize, checkpoint.clip.antialias, checkpoint.clip.short_side) == ("squash", False, 256)
    assert checkpoint.clip.mean == (0.45, 0.45, 0.45)
    assert checkpoint.clip.sampler == "segment_center"
    assert checkpoint.head.options.prototype.merge == "before"
    assert checkpoint.prompt == "a clip of {}"
    assert checkpoint.labels == benchmark_labels("ucf101", "official")
    training = checkpoint.source.training
    assert (training["preset"], training["dataset"], training["shot"]) == ("official-fsar", "ucf101", 5)
    assert (training["bn_mode"], training["shots"], training["random_test_frames"]) == ("train", 1, True)
    assert training["sampler"] == {"train": "segment", "eval": "segment_center"}
    assert training["data"] == {"hflip": 0.0, "labels": "official"}
    assert training["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

    again = run_here(cli, *arguments)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
    shown = run_here(cli, *arguments, "--out", tmp_path / "other")
    assert "frames: 8, segment_center (the repository draws one at random of each segment)" in shown.stdout
    assert "pixels: squash 256 bilinear, no antialias, crop 32, mean 0.45 0.45 0.45, std 0.225" in shown.stdout


def test_the_command_says_what_became_of_the_keys(tmp_path, towers, text_model, head_state, run_here):
    path = write(tmp_path / "fully_trained.pt", head_state("m2df"), towers["rn"])
    arguments = ["import", path, "--dataset", "kinetics100", "--out", tmp_path / "run", "--text-model", text_model]
    result = run_here(cli, *arguments)
    assert result.returncode == 0, result.stderr
    for expected in (
        "official-m2df: head m2df, image tower RN-1-2-1-1-w8-64px",
        "equal second copies: 18",
        "  tcn.network.2.net.4.weight_v",
        "never used by the official code: 4",
        "  context_conv22.bias",
        "mean 0 0 0, std 1 1 1",
        "frames: 8, linspace",
        "OTAM in one direction, lambda 0.5",
        "100 classes of kinetics100",
    ):
        assert expected in result.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["import", "x.pt", "--dataset", "hmdb"], "'hmdb51'"),
        (["import", "x.pt"], "--dataset"),
        (["import", "x.pt", "--dataset", "hmdb51", "--preset", "paper"], "'official-m2df'"),
        (["import", "x.pt", "--dataset", "hmdb51", "--shot", "2"], "--shot"),
        (["import", "x.pt", "--dataset", "hmdb51"], "x.pt: no such file"),
    ],
)
def test_misuse_exits_2(tmp_path, run_here, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    result = run_here(cli, *arguments)
    assert result.returncode == 2
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_an_official_file_runs_in_the_runtime_with_the_official_logits(
    shared_dir, tmp_path, towers, text_model, head_state, run_here, monkeypatch
):
    from m2df_export.commands.export import cli as export
    from m2df_runtime.backends.model import Model
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.prompt_texts import LabelRules
    from m2df_runtime.clips.opening import open_source
    from m2df_runtime.pixels.load import load_clip
    from m2df_train.evaluation.torch_scorer import CheckpointScorer

    read_operators_once(monkeypatch)
    path = write(tmp_path / "official.pt", head_state("m2df"), towers["vit"], m2df_periodic)
    run, bundle = tmp_path / "runs" / "official", tmp_path / "bundle"
    steps = (
        (cli, "import", path, "--dataset", "hmdb51", "--out", run, "--text-model", text_model),
        (export, "--checkpoint", run, "--out", bundle, "--no-verify"),
    )
    for step in steps:
        result = run_here(*step)
        assert result.returncode == 0, result.stderr
    session = Model(Bundle.open(bundle), backend="cpu", threads=1)

    ref = Reference(shared_dir / "reference", "mdmf_5w1s_q5_sorted.npz", torch.float32)
    episode = episode_of(ref, "text_features_test", "text_features_test")
    prompts = episode.class_prompts.numpy()
    prototypes = np.stack(
        [
            session.prototypes(episode.support_features[episode.support_labels == w].numpy(), prompts[w : w + 1])
            for w in range(5)
        ]
    )
    scores = session.match(episode.query_features.numpy(), prompts, prototypes)
    ref.check("eval_argmax", "dis_logits", torch.from_numpy(scores.logits))

    manifest = session.bundle.manifest
    rules = LabelRules(manifest.text.prompt, manifest.text.labels)
    assert rules.prompts("shake_hands") == ("a photo of shake_hands",)
    assert manifest.source.training["preset"] == "official-m2df"
    actions = ("wave_one_hand", "shake_hands", "kick")
    clip_files = [sorted((shared_dir / "data" / "clips" / action).iterdir())[0] for action in actions]
    clips = np.stack([load_clip(open_source(clip), manifest.clip) for clip in clip_files])
    logits = []
    for scorer in (session, CheckpointScorer(load_checkpoint(run), "cpu")):
        features = scorer.encode_clips(clips)
        texts = scorer.encode_texts([rules.prompts(action)[0] for action in actions])
        support = np.stack([scorer.prototypes(features[i : i + 1], texts[i : i + 1]) for i in range(3)])
        logits.append(scorer.match(features, texts, support).logits)
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-4)
