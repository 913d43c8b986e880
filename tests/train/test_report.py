"""`m2df-eval --report`: a whole page of a real model, with the numbers that the command prints."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_clips import write_colour_folder

from m2df_runtime.bundle.manifest import SourceInfo
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.commands.evaluate import cli
from m2df_train.model.backbone import load_backbone
from m2df_train.model.checkpoint import Checkpoint, save_checkpoint
from m2df_train.model.heads import build_head
from m2df_train.model.options import head_options
from m2df_train.report.attention import fusion_attention
from m2df_train.report.occlusion import CELLS, occlusion
from m2df_train.report.sweep import settings

VOID = {"meta", "br", "img", "wbr", "path", "use"}
SMALL = {"heads": 4, "ffn_dim": 48}
SECTIONS = ["accuracy", "classes", "confusion", "tsne", "attention", "looks", "sweep"]


class Page(HTMLParser):
    """Sections, tables and words of a page; refuses tags that do not match and ids that come twice."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.words: dict[str, str] = {}
        self._section = ""
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._section = found["id"] or ""
            self.rows[self._section], self.words[self._section] = [], ""
        if tag == "tr":
            self.rows[self._section].append([])
        if tag in ("td", "th"):
            self.rows[self._section][-1].append("")
        self.ids += [found["id"]] if "id" in found else []
        self.loads += [found[name] or "" for name in ("src", "href", "xlink:href") if name in found]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._section:
            self.words[self._section] += " ".join(data.split()) + " "
            if self.open and self.open[-1] != "section" and {"td", "th"} & set(self.open):
                self.rows[self._section][-1][-1] += data.strip()


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_colour_folder(tmp_path_factory.mktemp("colours"))
    (folder / "green").rename(folder / "a <b> & $c_1$")  # names are text, never markup
    return folder


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory):
    """Write a checkpoint with random weights; gives its folder."""
    torch.manual_seed(0)
    backbone = load_backbone("m2df-tiny")
    spec = ClipSpec(frames=4, size=backbone.image_size, region="full")

    def write(name: str, **options: object) -> Path:
        torch.manual_seed(1)
        head = build_head(name, backbone.dim, spec.frames, {**({} if name == "training-free" else SMALL), **options})
        folder = tmp_path_factory.mktemp(name) / name
        checkpoint = Checkpoint(backbone, head, spec, "a photo of {}", {}, SourceInfo(model="m2df-tiny", seed=3))
        save_checkpoint(folder / "best.safetensors", checkpoint)
        return folder

    return write


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def evaluate(run_here, colours, features):
    """Run the command on the colours; gives exit code, records and stderr."""

    def run(*args: object, data: Path = colours) -> tuple[int, list[dict], str]:
        shots = ("--way", 2, "--shot", "1,3", "--query", 2, "--episodes", 20)
        done = run_here(cli, "--data", data, "--cache", features, *shots, "--json", *args)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    return run


def number(cell: str) -> float:
    """The number a cell begins with."""
    return float(re.match(r"\D?[\d.]+", cell)[0].replace("\N{MINUS SIGN}", "-"))


def test_the_whole_page_of_a_checkpoint(save, evaluate, tmp_path):
    run = save("m2df", pps={"eval": "sample"}, mean_weight=1.0)
    file = tmp_path / "new" / "report.html"
    code, records, err = evaluate("--checkpoint", run, "--report", file)
    assert code == 0, err
    page = Page(file)
    assert list(page.rows) == SECTIONS
    assert "Left out" not in page.text
    assert [link for link in page.loads if not link.startswith(("data:image/", "#"))] == []
    assert "http" not in page.text.lower()
    assert "<script" not in page.text
    assert len(page.text) < 2_000_000

    head, *rows = page.rows["accuracy"]
    assert head == ["shots", "model %", "training-free %", "difference, points", "chance %"]
    for row, record in zip(rows, records, strict=True):
        assert row[0] == str(record["shot"])
        assert row[1] == f"{record['accuracy']:.1f}± {record['ci95']:.1f}"
        assert number(row[3]) == pytest.approx(number(row[1]) - number(row[2]), abs=0.11)
    by_class = {row[0]: number(row[2]) for row in page.rows["classes"][1:4]}
    assert by_class == pytest.approx(records[0]["per_class"], abs=0.051)
    assert set(by_class) == {"a <b> & $c_1$", "dark blue", "red"}
    counts = records[0]["confusion"]
    for cells, (name, row) in zip(page.rows["confusion"][1:4], counts.items(), strict=True):
        assert cells[0].endswith(name)
        shares = [100 * count / sum(row.values()) for count in row.values()]
        assert [int(cell or 0) for cell in cells[1:]] == pytest.approx(shares, abs=0.5)

    assert page.text.count("<svg") == 3 + 2 * len(re.findall(r"taken for", page.words["attention"]))
    assert "red/dora_1.avi" in page.text  # what could not be read is named
    own = [row for row in page.rows["sweep"] if "(as it is)" in row[0]]
    assert [row[0] for row in own] == [
        "0.5(as it is)", "both(as it is)", "OTAM + mean of the frames(as it is)", "most probable (argmax)(as it is)",
        "local and global(as it is)",
    ]  # fmt: skip
    for row in own:
        assert (row[2], row[4]) == ("0", "0")
        assert (row[1], row[3]) == (rows[0][1], rows[1][1])
    again = tmp_path / "again.html"
    assert evaluate("--checkpoint", run, "--report", again)[0] == 0
    assert again.read_bytes() == file.read_bytes()


def test_two_models_and_what_they_differ_in(save, evaluate, tmp_path):
    first = save("clip-fsar", otam={"lambda": 0.1})
    second = save("clip-fsar", text_visual_fusion={"mode": "combine"}, depth=2)
    file = tmp_path / "report.html"
    code, records, err = evaluate("--compare", first, second, "--report", file)
    assert code == 0, err
    page = Page(file)
    head, *rows = page.rows["accuracy"]
    assert head[1:4] == ["B %", "A %", "difference, points"]
    for row, record in zip(rows, records, strict=False):
        assert row[1].startswith(f"{record['b']['accuracy']:.1f}")
        assert row[2].startswith(f"{record['a']['accuracy']:.1f}")
        assert number(row[3]) == pytest.approx(record["difference"], abs=0.051)
    differing = {row[0]: row[1:] for row in rows[3:]}
    assert differing == {
        "head.options.otam.lambda": ["0.5", "0.1"],
        "head.options.depth": ["2", "1"],
        "head.options.text_visual_fusion.mode": ["combine", "off"],
    }
    gains = {row[0]: number(row[4]) for row in page.rows["classes"][1:4]}
    assert gains == pytest.approx(records[0]["gains"], abs=0.051)
    for title in ("as a query, layer 1", "as a query, layer 2", "as a support clip, layer 1"):
        assert title in page.words["attention"]


def test_what_has_no_modules_or_no_fusion_says_so(save, evaluate, tiny_bundle, tmp_path):
    file = tmp_path / "report.html"
    code, _, err = evaluate("--bundle", tiny_bundle, "--report", file)
    assert code == 0, err
    page = Page(file)
    assert list(page.rows) == SECTIONS
    for section in ("tsne", "attention", "sweep"):
        assert "Left out" in page.words[section]
        assert "bundle" in page.words[section]
    assert "training-free %" in page.rows["accuracy"][0]
    assert "before fusion" in page.words["tsne"]
    assert page.text.count("data:image/jpeg") >= 8  # where it looks needs answers alone

    assert evaluate("--checkpoint", save("training-free"), "--report", file)[0] == 0
    page = Page(file)
    assert "training-free head itself" in page.words["accuracy"]
    assert "encodes nothing" in page.words["attention"]
    assert "text alone" in page.words["sweep"]


def test_what_cannot_be_written_is_refused_before_any_work(evaluate, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for target in (tmp_path, tmp_path / "file" / "report.html"):
        code, records, err = evaluate("--checkpoint", "missing", "--report", target)
        assert (code, records) == (2, [])
        assert str(target) in err
    monkeypatch.setattr("m2df_train.report.check.PACKAGES", {"no_such_module": "no-such-package"})
    code, _, err = evaluate("--checkpoint", "missing", "--report", tmp_path / "report.html")
    assert code == 3
    assert "no-such-package" in err
    assert "pip install 'm2df[report]'" in err


def test_attention_is_what_the_head_computes_with():
    torch.manual_seed(0)
    head = build_head("m2df", 16, 4, {"heads": 2, "ffn_dim": 8}).eval()
    features, prompts = torch.randn(4, 16), torch.randn(3, 16)
    maps = fusion_attention(head, features.numpy(), prompts.numpy(), own=1)
    assert [found.title for found in maps] == ["local view", "global view"]
    prompt = head.select(features[None], prompts, "argmax").prompts
    for found, view in zip(maps, (head.local_view, head.global_view), strict=True):
        layer = view.fusion.layers[0]
        queries = layer.norm(torch.cat([prompt, view.context(features[None])[0]]))
        memory = layer.norm(torch.cat([prompt, features]))
        packed = torch.nn.MultiheadAttention(16, 2, bias=False, batch_first=True).eval()
        packed.in_proj_weight.data = torch.cat([layer.attn.q.weight, layer.attn.k.weight, layer.attn.v.weight])
        _, weights = packed(queries[None], memory[None], memory[None])  # PyTorch's own, averaged over heads
        np.testing.assert_allclose(found.weights, weights[0].detach().numpy(), atol=1e-6)
        assert found.rows == found.columns == ("text", "1", "2", "3", "4")


@pytest.mark.parametrize("alone", [True, False], ids=["each frame alone", "frames that tell the others"])
def test_occlusion_finds_the_only_place_that_counts(alone):
    class Corner:
        """Answers by how bright the upper left eighth of frame 1 is."""

        frames_alone = alone

        def encode_clips(self, clips):
            bright = clips[:, :, :4, :4].mean(axis=(2, 3), dtype=np.float64).astype(np.float32)  # (B, T, 3)
            return bright if alone else np.repeat(bright[:, 1:2], bright.shape[1], axis=1)

        def parallel(self):
            from contextlib import nullcontext

            return nullcontext(1)

        def clip_parts(self, features):
            return features

        def batch_match(self, parts, prompts, prototypes):
            bright = parts[:, :, 1].mean(axis=-1)  # (1, Q)
            return np.stack([-bright, bright], axis=-1)

    pixels = np.zeros((3, 32, 32, 3), np.uint8)
    pixels[1, :4, :4] = 255
    found = occlusion(Corner(), pixels, np.zeros((2, 3), np.float32), np.zeros((2, 1, 3, 3), np.float32))
    colour = round(255 * 16 / (3 * 32 * 32))
    assert (found.margin, found.runner_up) == (510.0, 0)
    assert found.effect.shape == (3, CELLS, CELLS)
    assert found.effect[1, 0, 0] == pytest.approx(510 - 2 * colour)
    # one patch covers the corner; of the patches over a cell beside it, that one and others without effect
    assert found.effect[1, 0, 1] == pytest.approx((510 - 2 * colour) / 2)
    assert found.effect[1, 1, 1] == pytest.approx((510 - 2 * colour) / 4)
    assert np.count_nonzero(found.effect) == 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("m2df", {"otam": {"lambda": 0.3}, "view_weights": [1.0, 0.5]}),
        ("m2df", {"otam_weight": 0.0, "mean_weight": 2.0}),
        ("clip-fsar", {"text_visual_fusion": {"mode": "combine", "beta": 0.4}}),
        ("training-free", {}),
    ],
)
def test_every_topic_holds_the_model_as_it_is_once(name, options):
    head = build_head(name, 16, 4, {**({} if name == "training-free" else {"heads": 2, "ffn_dim": 8}), **options})
    rows = settings(head)
    topics = dict.fromkeys(row.topic for row in rows)
    for topic in topics:
        of_topic = [row for row in rows if row.topic == topic]
        assert sum(row.own for row in of_topic) == 1
        assert all((row.options == head_options(name, head.options.model_dump())) is row.own for row in of_topic)
        assert len({row.options.model_dump_json() for row in of_topic}) == len(of_topic)
    assert ("OTAM λ" in topics) is (head.options.otam_weight > 0)
    for row in rows:
        assert type(row.options).model_validate(row.options.model_dump()) == row.options
