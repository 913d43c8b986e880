"""CLIP's tokenizer: the same ids as open_clip, from the tokenizer.json the export writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2df_export.graphs.tokenizer_json import build_tokenizer_json, tokenizer_json
from m2df_runtime.bundle.tokenizer import CONTEXT_LENGTH, END_TOKEN, START_TOKEN, Tokenizer, clean_text
from m2df_runtime.errors import InputError

NASTY = [
    "a photo of hand waving",
    "",
    "   ",
    "It's don't I'LL we've 'S",
    "naïve café ÅNGSTRÖM e\u0301clair",
    "&amp;lt;b&amp;gt; &ldquo;hi&rdquo; &amp",
    "<b>&ldquo;x&rdquo;</b> &#39;s",
    "\uff11\uff12 \uff21\uff22\u3000x",
    "\ufb01ght \ufb02y \u0149 \ufb05",
    "\u201ccurly\u201d \u2018quotes\u2019",
    "日本語 テスト 한국어 العربية हिन्दी",
    "смотреть телевизор",
    "🤸 cartwheel 🏃\u200d♀️!!",
    "a\tb\nc\x00d\x1fe\r\nf",
    "x" * 500,
    "word " * 100,
    "<end_of_text> <start_of_text> <|endoftext|>",
    "123 4567 3.14 Ⅷ ½ ²",
    "\u200bzero\u200cwidth",
    "İstanbul ΣΊΣΥΦΟΣ ß ẞ",
    "a_b-c C++ & C# !!!???...",
    "\x1b[31mred",
    "lone \ud83d surrogate",
    "a\u00a0b\u2028c\u3000d",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(build_tokenizer_json())


def test_known_ids(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(["a photo of a cat"])
    assert tokens.dtype == np.int32
    assert tokens.shape == (1, CONTEXT_LENGTH)
    assert tokens[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]


def test_empty_and_long_texts_keep_start_and_end(tokenizer: Tokenizer) -> None:
    empty, long = tokenizer.encode(["", "word " * 200])
    assert empty[:3].tolist() == [START_TOKEN, END_TOKEN, 0]
    assert long[0] == START_TOKEN
    assert long[-1] == END_TOKEN
    assert (long[1:-1] == long[1]).all()


def test_equals_open_clip(tokenizer: Tokenizer) -> None:
    backbone = pytest.importorskip("m2df_train.model.backbone", reason="needs torch and open_clip")
    reference = backbone.import_open_clip().tokenizer.SimpleTokenizer()
    ours, theirs = tokenizer.encode(NASTY), reference(NASTY).numpy()
    different = [text for text, a, b in zip(NASTY, ours, theirs, strict=True) if not np.array_equal(a, b)]
    assert different == []


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["&amp;", "&lt;", "&#39;", "&ldquo;", "&", ";", "<b>", "\u00c3\u00a9", "\u00e2\u20ac\u2122", "\x1b[31m"]
            ),
            st.text(max_size=8),
            st.text(max_size=8).map(lambda text: text.encode("utf-8", "replace").decode("latin-1")),
            st.text(max_size=8).map(lambda text: text.encode("utf-8", "replace").decode("cp1252", "replace")),
        ),
        max_size=12,
    ).map("".join)
)
@settings(max_examples=400)
def test_cleaning_is_open_clips(text: str) -> None:
    open_clip = pytest.importorskip("open_clip.tokenizer", reason="needs open_clip")
    assert clean_text(text) == open_clip._clean_lower(text)


def test_text_decoded_with_a_wrong_encoding_is_repaired() -> None:
    assert clean_text("caf\u00c3\u00a9 \u00e2\u20ac\u0153Hi\u00e2\u20ac\u009d") == 'caf\u00e9 "hi"'


def test_texts_are_bounded(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["&" + "amp;" * 499]).shape == (1, CONTEXT_LENGTH)
    with pytest.raises(InputError, match=r"'&amp;amp;amp.* has 80001 characters, at most 2000 are read"):
        tokenizer.encode(["a", "&" + "amp;" * 20_000])
    with pytest.raises(InputError, match="no texts"):
        tokenizer.encode([])


def test_json_is_compact_and_complete() -> None:
    document = json.loads(build_tokenizer_json())
    assert len(document["model"]["vocab"]) == 49408
    assert len(document["model"]["merges"]) == 48894
    assert [token["id"] for token in document["added_tokens"]] == [START_TOKEN, END_TOKEN]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"}'])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.from_bytes(data)


def test_other_vocabularies_are_refused() -> None:
    document = json.loads(tokenizer_json([]))
    document["model"]["vocab"]["<start_of_text>"] = 5000
    for token in document["added_tokens"]:
        token["id"] -= 44406
    with pytest.raises(InputError, match="not CLIP's vocabulary"):
        Tokenizer.from_bytes(json.dumps(document).encode())
