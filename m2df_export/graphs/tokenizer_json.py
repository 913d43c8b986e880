"""tokenizer.json of a bundle, made from open_clip's copy of CLIP's byte-pair vocabulary.

The file is complete for the `tokenizers` library: normaliser, splitting rule, byte-level BPE and
the two special tokens, so a bundle can be used without m2df.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from m2df_runtime.errors import EnvironmentMissing

VOCABULARY_SIZE = 49408
SPECIAL_TOKENS = ("<start_of_text>", "<end_of_text>")
# Contractions, runs of letters, single digits, runs of anything else.
SPLIT_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for byte values, in vocabulary order.

    Printable Latin-1 bytes stand for themselves, the others are moved above U+00FF; the vocabulary
    lists the printable ones first.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = len(set(range(256)) - set(printable))
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(moved)]


def read_merges() -> list[str]:
    """The 48,894 merge rules `left right`, most frequent first.

    Raises:
        EnvironmentMissing: open_clip is not installed or has no vocabulary.
    """
    spec = importlib.util.find_spec("open_clip")  # finds the package without importing torch
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise EnvironmentMissing("open_clip's vocabulary is missing", "pip install open_clip_torch")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    count = VOCABULARY_SIZE - 2 * 256 - len(SPECIAL_TOKENS)
    return lines[1 : 1 + count]  # the first line is a version comment


def build_tokenizer_json() -> bytes:
    """The tokenizer.json of CLIP as compact UTF-8 JSON.

    Raises:
        EnvironmentMissing: open_clip is not installed.
    """
    return tokenizer_json(read_merges())


def tokenizer_json(merges: Sequence[str]) -> bytes:
    """A tokenizer.json with these merge rules; the special tokens keep CLIP's ids however many there are."""
    alphabet = byte_alphabet()
    endings = [character + "</w>" for character in alphabet]
    words = [*alphabet, *endings, *(rule.replace(" ", "", 1) for rule in merges)]
    first_special = VOCABULARY_SIZE - len(SPECIAL_TOKENS)
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {token: first_special + index for index, token in enumerate(SPECIAL_TOKENS)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": first_special + i, "content": token, **flags} for i, token in enumerate(SPECIAL_TOKENS)]
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Removed", "invert": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": "</w>",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocabulary,
        "merges": list(merges),
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
