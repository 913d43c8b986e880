from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from reference import GOLDEN, Reference
from safetensors.numpy import load_file
from torch import Tensor

from m2df_train.importing.official_heads import read_head_keys
from m2df_train.model.alignment import cosine
from m2df_train.model.distillation import mutual_distillation
from m2df_train.model.heads import Episode, Head, build_head
from m2df_train.model.options import DistilOptions
from m2df_train.model.prompt_selection import frame_cosines, topk_frames, topk_score

M2DF_FILES = [
    "mdmf_3w2s_q1_shuffled_smallnorm.npz",
    "mdmf_5w1s_q5_sorted.npz",
    "mdmf_5w1s_q6_depth2.npz",
    "mdmf_5w5s_q7_shuffled.npz",
]
CLIP_FSAR_FILES = [
    "clipfsar_3w2s_q1_shuffled.npz",
    "clipfsar_5w1s_q5_sorted.npz",
    "clipfsar_5w1s_q6_depth2.npz",
    "clipfsar_5w2s_q5_t4.npz",
    "clipfsar_5w5s_q7_shuffled.npz",
]
CONDITIONS = [(), ("t",), ("v",), ("t", "v")]  # rows of the stored distillation tables
DIRECTIONS = ["mutual", "global_teaches", "local_teaches"]  # columns: bid, up2down, down2up
NO_DROPOUT = {"attention": 0.0, "ffn": 0.0}
Change = Callable[[Head, str], None]  # of a head for a run
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def episode_of(ref: Reference, prompt_table: str, class_table: str) -> Episode:
    """The stored episode; labels become positions in ascending order of the stored ones."""
    frames, dim = ref.config["frames"], ref.config["D"]
    labels, support_labels = ref.index("in.support_labels").unique(return_inverse=True)
    support_classes = ref.index("in.real_support_labels")
    rows = torch.stack([support_classes[support_labels == w][0] for w in range(len(labels))])
    return Episode(
        support_features=ref.input("in.support_features").view(-1, frames, dim),
        support_labels=support_labels,
        query_features=ref.input("in.target_features").view(-1, frames, dim),
        class_prompts=ref.input(f"in.{prompt_table}")[rows],
        query_labels=torch.searchsorted(labels, ref.index("in.target_labels")),
        text_table=ref.input(f"in.{class_table}"),
        support_classes=support_classes,
        query_classes=ref.index("in.real_target_labels"),
        uniforms=torch.from_numpy(ref.arrays["in.pps_u"]) if "in.pps_u" in ref.arrays else None,
    )


def load(ref: Reference, name: str, options: dict, train: bool, change: Callable[[Head], None] | None = None) -> Head:
    """The head, perhaps changed, with the file's weights; every official weight must find its place."""
    dropout = {**NO_DROPOUT, "context": 0.0} if name == "m2df" else NO_DROPOUT
    shape = {"depth": ref.config["transformer_depth"], "dropout": dropout}
    head = build_head(name, ref.config["D"], ref.config["frames"], {**shape, **options}).to(ref.dtype).train(train)
    if change is not None:
        change(head)
    head.load_state_dict(ref.head_weights(), strict=True)
    return head


def check_gradients(ref: Reference, run: str, prefix: str, head: Head, episode: Episode, total: Tensor) -> None:
    """Gradients of one loss with respect to both feature sets and all parameters that are stored."""
    names = ref.config["grad_norm_names"]
    parameters = dict(head.named_parameters())
    ours = {official: parameters[new] for official, new in official_names(names).items()}
    leaves = [episode.support_features, episode.query_features, *ours.values()]
    found = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
    ref.check_gradient(run, f"{prefix}.support_features", found[0])
    ref.check_gradient(run, f"{prefix}.target_features", found[1])
    gradients = dict(zip(ours, found[2:], strict=True))
    ref.check_gradient(run, f"{prefix}.norms", torch.stack([gradients[n].norm() for n in names]))
    for name in names:
        if ref.has(run, f"{prefix}.param.{name}"):
            ref.check_gradient(run, f"{prefix}.param.{name}", gradients[name])


def official_names(names: list[str]) -> dict[str, str]:
    """Official parameter name -> ours, by renaming markers instead of weights."""
    markers = {name: torch.tensor(float(i)) for i, name in enumerate(names)}
    by_value = {int(value): new for new, value in read_head_keys(markers).weights.items()}
    return {name: by_value[i] for i, name in enumerate(names)}


@PRECISIONS
@pytest.mark.parametrize("file", M2DF_FILES)
def test_m2df_reproduces_every_stored_run(shared_dir, file, dtype):
    check_m2df(Reference(shared_dir / "reference", file, dtype))


@PRECISIONS
@pytest.mark.parametrize("file", CLIP_FSAR_FILES)
def test_clip_fsar_reproduces_every_stored_run(shared_dir, file, dtype):
    check_clip_fsar(Reference(shared_dir / "reference", file, dtype))


class Stored(torch.nn.Module):
    """In place of a fusion encoder whose weights are not among the golden values: what the official one gave."""

    def __init__(self, ref: Reference, query: str, support: str) -> None:
        super().__init__()
        of_query, of_support = ref.expected(query), ref.expected(support)
        outputs = [of_query, of_support]
        if of_query.shape[1] == of_support.shape[1]:  # M2DF takes both at once
            outputs.append(torch.cat([of_support, of_query]))
        self.outputs = {len(tokens): tokens for tokens in outputs}

    def forward(self, queries: Tensor, memory: Tensor | None = None, *, skip: int = 0) -> Tensor:
        tokens = self.outputs[len(queries)]
        dropped = torch.full((len(tokens), queries.shape[1] - tokens.shape[1], tokens.shape[2]), torch.nan)
        return torch.cat([tokens, dropped], dim=1)[:, skip:]  # the text of CLIP-FSAR's support is not stored


def test_m2df_reproduces_the_golden_runs():
    def without_global_fusion(head: Head, run: str) -> None:
        head.global_view.fusion = Stored(ref, f"{run}.down_target_tokens", "eval_draw.down_support_tokens")

    ref = Reference(GOLDEN, M2DF_FILES[0], torch.float32)
    check_m2df(ref, without_global_fusion)


def test_clip_fsar_reproduces_the_golden_runs():
    def without_fusion(head: Head, run: str) -> None:
        like = "train_cls_merge0" if head.training else "eval_merge0" if head.merges_after else "eval_merge1"
        head.fusion = Stored(ref, f"{like}_single0.query_tokens", f"{like}_single0.support_tokens")

    ref = Reference(GOLDEN, CLIP_FSAR_FILES[0], torch.float32)
    check_clip_fsar(ref, without_fusion)


def test_golden_values_are_those_of_the_whole_reference(shared_dir):
    entries = json.loads((GOLDEN / "manifest.json").read_text())["files"]
    for name in [entry["file"] for entry in entries] + [path.name for path in GOLDEN.glob("weights_*")]:
        read = np.load if name.endswith(".npz") else load_file
        golden, whole = read(GOLDEN / name), read(shared_dir / "reference" / name)
        assert len(golden) > 0
        for key in golden:
            np.testing.assert_array_equal(golden[key], whole[key], err_msg=f"{name} {key}")


def check_m2df(ref: Reference, change: Change | None = None) -> None:
    for run, setting in ref.config["runs"].items():
        train = setting["mode"] == "train"
        mode = {"draw": "sample", "argmax": "argmax"}.get(setting["prototype_choice"], "none")
        options = {
            "pps": {"train": mode, "eval": mode},
            "otam": {"bidirectional": not setting["SINGLE_DIRECT"]},
            "distil": {"text_token": "first_frame", "detach_teacher": False, "detach_weights": False,
                       "conditions": ("t",), "direction": "global_teaches"},
            "loss": {"lambda_text": 1.0},
        }  # fmt: skip
        head = load(ref, "m2df", options, train, change and partial(change, run=run))
        episode = episode_of(ref, setting["text_table"], setting["text_table"])
        features = (episode.support_features, episode.query_features)
        for x in features:
            x.requires_grad_(train)
        out = head(episode)
        check_forward(ref, run, head, episode, out, mode)
        if train:
            check_training(ref, run, head, episode, out, options)
    assert not ref.unread()


def check_forward(ref, run, head, episode, out, mode) -> None:
    ref.check(run, "dis_logits", out.logits)
    ref.check(run, "cum_dist_up", out.distances[:, 0])
    ref.check(run, "cum_dist_down", out.distances[:, 1])
    ref.check(run, "class_logits", out.class_logits)
    for name, values in (("t", out.text_confidence), ("v", out.visual_confidence)):
        ref.check(run, f"{name}_up", values[0])
        ref.check(run, f"{name}_down", values[1])

    selection = head.select(episode.query_features, episode.class_prompts, mode, episode.uniforms)
    ref.check(run, "soft_context", selection.prompts.unsqueeze(1))
    assert np.array_equal(selection.best, ref.arrays[f"{run}.pps_argmax"])
    if selection.index is not None:
        assert np.array_equal(selection.index, ref.arrays[f"{run}.pps_index"])
    query = head.tokens(episode.query_features, selection.prompts)
    ref.check(run, "up_target_tokens", query[:, 0])
    ref.check(run, "down_target_tokens", query[:, 1])
    support = head.tokens(episode.support_features, episode.class_prompts[episode.support_labels])
    prototypes = torch.stack(
        [support[episode.support_labels == w].mean(dim=0) for w in range(len(episode.class_prompts))]
    )
    if ref.has(run, "up_support_tokens"):
        check_details(ref, run, head, episode, out, support, prototypes)

    if ref.has(run, "up_frame_cos"):
        for view, name in enumerate(("up", "down")):
            ref.check(run, f"{name}_frame_cos", cosine(query[:, None, view, 1:], prototypes[None, :, view, 1:]))
    first = [cosine(query[:, v, 1], prototypes[:, v, 1]) for v in range(2)]
    ref.check(run, "up_first_frame_cos", first[0])
    ref.check(run, "down_first_frame_cos", first[1])
    table = [
        [
            mutual_distillation(
                out.distances.transpose(0, 1), torch.stack(first), DistilOptions(conditions=c, direction=d)
            ).loss
            for d in DIRECTIONS
        ]
        for c in CONDITIONS
    ]
    ref.check(run, "distill_loss", torch.stack([torch.stack(row) for row in table]))


def check_details(ref, run, head, episode, out, support, prototypes) -> None:
    k = ref.config["topk"]
    prompts, frames = episode.class_prompts, episode.query_features
    cosines = frame_cosines(prompts, frames)
    ref.check(run, "pps_cos", cosines)
    ref.check(run, "pps_value", topk_score(cosines, k))
    ref.check(run, "pps_factors", out.selected, atol=1e-3)
    own = cosine(prompts[episode.support_labels].unsqueeze(1), episode.support_features).squeeze(1)
    ref.check(run, "support_filter_cos", own)
    kept, index = topk_frames(episode.support_features, own, k)
    ref.check(run, "support_filtered", kept)
    assert np.array_equal(index, ref.arrays[f"{run}.support_filter_index"])
    best = torch.from_numpy(ref.arrays[f"{run}.pps_argmax"])
    kept, index = topk_frames(frames, cosines[torch.arange(len(best)), best], k)
    ref.check(run, "target_filtered", kept)
    assert np.array_equal(index, ref.arrays[f"{run}.target_filter_index"])
    for side, x in (("support", episode.support_features), ("target", frames)):
        ref.check(run, f"ltce_{side}", head.local_view.context(x))
        ref.check(run, f"gtce_{side}", head.global_view.context(x))
        ref.check(run, f"tcn_{side}", head.global_view.context.network(x, range(x.shape[1])))
    for view, name in enumerate(("up", "down")):
        ref.check(run, f"{name}_support_tokens", support[:, view])
        ref.check(run, f"{name}_prototype_tokens", prototypes[:, view])
        torch.testing.assert_close(out.prototypes[:, view], prototypes[:, view, 1:])


def check_training(ref, run, head, episode, out, options) -> None:
    tasks = ref.config["tasks_per_batch"]
    ref.check(run, "loss_class", out.losses.text / tasks)
    ref.check(run, "loss_dis", out.losses.match / tasks)
    ref.check(run, "total_A", out.losses.total / tasks)
    unconditional = {**options, "distil": {**options["distil"], "conditions": (), "direction": "mutual"}}
    other = load(ref, "m2df", unconditional, train=True)
    total = other(episode).losses.total / tasks
    ref.check(run, "total_B", total)
    if ref.has(run, "grad_A.norms"):
        check_gradients(ref, run, "grad_A", head, episode, out.losses.total / tasks)
    if ref.has(run, "grad_B.norms"):
        check_gradients(ref, run, "grad_B", other, episode, total)


def check_clip_fsar(ref: Reference, change: Change | None = None) -> None:
    for run, setting in ref.config["runs"].items():
        train, flags = setting["mode"] == "train", setting["TRAIN"]
        fusion = "text" if flags.get("EVAL_TEXT") else "combine" if flags.get("COMBINE") else "off"
        classified = flags.get("USE_CLASSIFICATION", False)
        options = {
            "otam": {"bidirectional": not flags.get("SINGLE_DIRECT", False)},
            "prototype": {"merge": "before" if flags.get("MERGE_BEFORE") else "after"},
            "text_visual_fusion": {"mode": fusion, "beta": flags.get("TEXT_COFF") or 0.9},
            "loss": {"lambda_text": flags["USE_CLASSIFICATION_VALUE"] if train and classified else 0.0},
        }
        head = load(ref, "clip-fsar", options, train, change and partial(change, run=run))
        table = "text_features_train" if train else "text_features_test"
        episode = episode_of(ref, table, "text_features_train")
        for x in (episode.support_features, episode.query_features):
            x.requires_grad_(train)
        out = head(episode)
        # The official code returns probabilities under EVAL_TEXT and COMBINE, m2df their logarithms.
        ref.check(run, "logits", out.logits if fusion == "off" else out.logits.exp())
        if ref.has(run, "visual_cum_dist"):
            ref.check(run, "visual_cum_dist", out.distances[:, 0])
        if ref.has(run, "class_logits"):
            ref.check(run, "class_logits", out.class_logits)
        if ref.has(run, "query_tokens"):
            check_clip_fsar_tokens(ref, run, head, episode, out)
        if train:
            loss = out.losses.total / flags["BATCH_SIZE"]
            ref.check(run, "loss", loss)
            if ref.has(run, "grad.norms"):
                check_gradients(ref, run, "grad", head, episode, loss)
    assert not ref.unread()


def check_clip_fsar_tokens(ref, run, head, episode, out) -> None:
    query = head.fusion(episode.query_features)
    ref.check(run, "query_tokens", query)
    if head.options.prototype.merge == "before":
        support = out.prototypes[:, 0]  # one row per class
    else:
        support = head.encode_support(episode.support_features, episode.class_prompts[episode.support_labels])
    ref.check(run, "support_tokens", support)
    ref.check(run, "frame_dists", 1 - cosine(query[:, None], out.prototypes[None, :, 0]))
