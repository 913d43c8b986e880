"""CLIP's tokenizer (byte-pair encoding, context 77) on the `tokenizers` library.

The vocabulary comes with the bundle; the text cleaning is done here. It equals open_clip's, except
that text decoded with a wrong encoding ("cafÃ©") stays as it is: repairing it would need ftfy.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import InputError

CONTEXT_LENGTH = 77
START_TOKEN = 49406
END_TOKEN = 49407

# What ftfy's default clean-up does beyond mojibake: straight quotes, no ligatures, no wide forms, no controls.
_SINGLE_QUOTES, _DOUBLE_QUOTES = "\u02bc\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f"
_LIGATURES = {"\u0132": "IJ", "\u0133": "ij", "\u0149": "\u02bcn", "\u01f1": "DZ", "\u01f2": "Dz", "\u01f3": "dz"}
_LIGATURES |= {"\u01c4": "D\u017d", "\u01c5": "D\u017e", "\u01c6": "d\u017e", "\u01c7": "LJ", "\u01c8": "Lj"}
_LIGATURES |= {"\u01c9": "lj", "\u01ca": "NJ", "\u01cb": "Nj", "\u01cc": "nj"}
_LIGATURES |= {chr(code): unicodedata.normalize("NFKD", chr(code)) for code in range(0xFB00, 0xFB07)}
_LIGATURES["\ufb05"] = "\u017ft"  # the long s stays
_WIDE = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in [0x3000, *range(0xFF01, 0xFFF0)]}
_CONTROLS = [*range(0x00, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
_QUOTES = str.maketrans(dict.fromkeys(_SINGLE_QUOTES, "'") | dict.fromkeys(_DOUBLE_QUOTES, '"'))
_FORMS = str.maketrans(_LIGATURES | _WIDE)
_REMOVED = dict.fromkeys(_CONTROLS)
_TERMINAL_ESCAPE = re.compile(r"\x1b\[((?:\d|;)*)([a-zA-Z])")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")


def clean_text(text: str) -> str:
    """Normalise a prompt as open_clip does: entities, quotes, wide forms, NFC, white space, lower case."""
    before = None
    while text != before:  # an entity may hide another one, or a curly quote
        before, text = text, _fix_characters(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _fix_characters(text: str) -> str:
    if "<" not in text:  # in text with tags, entities are left to the unescaping at the end
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    text = text.translate(_FORMS).translate(_QUOTES)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _SURROGATE.sub("\ufffd", text)  # names of undecodable files hold surrogates
    text = _TERMINAL_ESCAPE.sub("", text).translate(_REMOVED)
    return unicodedata.normalize("NFC", text)


class Tokenizer:
    """Texts to token ids."""

    def __init__(self, encoder: object) -> None:
        self._encoder = encoder

    @classmethod
    def from_bytes(cls, data: bytes) -> Tokenizer:
        """Read a tokenizer.json.

        Raises:
            InputError: Not a tokenizer.json, or not CLIP's vocabulary.
        """
        from tokenizers import Tokenizer as Encoder

        try:
            encoder = Encoder.from_buffer(data)
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"tokenizer.json: {error}", "export the bundle again") from None
        ids = tuple(encoder.token_to_id(token) for token in ("<start_of_text>", "<end_of_text>"))
        if ids != (START_TOKEN, END_TOKEN):
            raise InputError("tokenizer.json: not CLIP's vocabulary", "only models with CLIP's tokenizer are supported")
        return cls(encoder)

    def encode(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Token ids int32 [P, 77]: start, text, end, zeros; a long text is cut and keeps its end token."""
        from tokenizers import Tokenizer as Encoder

        assert isinstance(self._encoder, Encoder)
        tokens = np.zeros((len(texts), CONTEXT_LENGTH), np.int32)  # (P, 77)
        encodings = self._encoder.encode_batch([clean_text(text) for text in texts], add_special_tokens=False)
        for row, encoding in zip(tokens, encodings, strict=True):
            ids = [START_TOKEN, *encoding.ids[: CONTEXT_LENGTH - 2], END_TOKEN]
            row[: len(ids)] = ids
        return tokens
