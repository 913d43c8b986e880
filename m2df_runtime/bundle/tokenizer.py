"""CLIP's tokenizer (byte-pair encoding, context 77) on the `tokenizers` library.

The vocabulary comes with the bundle; the text is cleaned here, with the library that open_clip cleans it with.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import InputError

CONTEXT_LENGTH = 77
START_TOKEN = 49406
END_TOKEN = 49407

# What follows the 77th token, some 400 letters in, is not read. Cleaning takes 0.2 s for entities hidden in each other
# to this length, and grows with its square: 64,000 characters took 85 s.
MAX_CHARACTERS = 2000


def clean_text(text: str) -> str:
    """Normalise a prompt as open_clip does: encodings, entities, quotes, wide forms, white space, lower case.

    Raises:
        InputError: The text has more than 2000 characters.
    """
    import ftfy  # 0.1 s, and only where text is read

    if len(text) > MAX_CHARACTERS:
        shown = f"{text[:30]!r}…"
        raise InputError(
            f"the text {shown} has {len(text)} characters, at most {MAX_CHARACTERS} are read", "shorten it"
        )
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


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
        """Token ids int32 [P, 77]: start, text, end, zeros; a long text is cut and keeps its end token.

        Raises:
            InputError: There is no text, or one has more than 2000 characters.
        """
        from tokenizers import Tokenizer as Encoder

        assert isinstance(self._encoder, Encoder)
        if not texts:
            raise InputError("no texts to encode")
        tokens = np.zeros((len(texts), CONTEXT_LENGTH), np.int32)  # (P, 77)
        encodings = self._encoder.encode_batch([clean_text(text) for text in texts], add_special_tokens=False)
        for row, encoding in zip(tokens, encodings, strict=True):
            ids = [START_TOKEN, *encoding.ids[: CONTEXT_LENGTH - 2], END_TOKEN]
            row[: len(ids)] = ids
        return tokens
