"""From a folder name to the texts a model reads: naming rules, labels.csv and the prompt template."""

from __future__ import annotations

import csv
import io
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.folder_entries import named
from m2df_runtime.errors import InputError
from m2df_runtime.regular_files import open_regular

ClassTexts = Mapping[str, str | tuple[str, ...]]
"""Class folder to its description, or its descriptions."""

MAX_LABELS_BYTES = 16 << 20
MAX_TEXT = 1000  # characters; a model reads 77 tokens, about 400 letters, and what follows only costs time
MAX_TEXTS = 32  # of one class

_log = logging.getLogger(__name__)

# "handWaving" and "HTTPServer" split where a capital starts a word; "UT" and "CPR" stay whole.
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def text_from_folder(name: str) -> str:
    """Descriptive text of a class folder: `_` and `-` become spaces, CamelCase is split and lowered.

    `hand_waving`, `hand-waving` and `HandWaving` all give `hand waving`. Names without any of these,
    in any script, stay as they are.
    """
    words = _CAMEL.sub(" ", re.sub(r"[_\-]+", " ", name)).split()
    if len(words) > 1 and _CAMEL.search(name):
        words = [word if word.isupper() and len(word) > 1 else word.lower() for word in words]
    return " ".join(words) or name


def spelling(name: str) -> str:
    """A class name with composed characters (a Mac's folders are decomposed) and no spaces around."""
    return unicodedata.normalize("NFC", name).strip()


def class_key(name: str) -> str:
    """What class names are compared by: their spelling, in which capital letters count for nothing.

    Phones begin a word with one, and there are disks on which `Wave` and `wave` are one folder.
    """
    return spelling(spelling(name).casefold())


def class_called(labels: Iterable[str], name: str) -> str | None:
    """The label of the class that a name means: the one that is spelt so, else one that differs in capital letters."""
    alike = [label for label in labels if class_key(label) == class_key(name)]
    return next((label for label in alike if spelling(label) == spelling(name)), alike[0] if alike else None)


def check_template(template: str) -> str:
    """The prompt template itself, if it has exactly one `{}` and no other braces.

    Raises:
        InputError: It has none, several, or named fields, or more than `MAX_TEXT` characters.
    """
    if len(template) > MAX_TEXT:
        raise InputError(f"a prompt of {len(template)} characters, at most {MAX_TEXT} are allowed", "shorten it")
    if template.count("{}") != 1 or re.search(r"[{}]", template.replace("{}", "")):
        raise InputError(f"prompt {template!r} must contain exactly one {{}}", 'for example --prompt "a photo of {}"')
    return template


def read_labels(path: Path) -> dict[str, tuple[str, ...]]:
    """Read labels.csv: columns `class` (folder name) and `text`; other columns are allowed.

    Several rows of one class are several descriptions of it.

    Returns:
        `class_key` of every class to its texts, in the order of the rows and without repetition.

    Raises:
        InputError: No file, not readable as UTF-8 CSV, a column is missing, an empty cell, one of more than
            `MAX_TEXT` characters, or more than `MAX_TEXTS` texts of one class.
    """
    rows = _rows(path)
    labels: dict[str, tuple[str, ...]] = {}
    for line, row in rows:
        name, text = class_key(row.get("class") or ""), " ".join((row.get("text") or "").split())
        if not name or not text:
            raise InputError(f"{path}, line {line}: empty {'text' if name else 'class'}", "rows are class,text")
        for column, cell in (("class", name), ("text", text)):
            if len(cell) > MAX_TEXT:
                raise InputError(
                    f"{path}, line {line}: a {column} of {len(cell)} characters, at most {MAX_TEXT} are allowed",
                    "shorten it",
                )
        texts = labels.setdefault(name, ())
        if text not in texts:
            labels[name] = (*texts, text)
        if len(texts) == MAX_TEXTS:
            raise InputError(f"{path}, line {line}: class {name!r} has more than {MAX_TEXTS} texts", "keep the best")
    if not labels:
        raise InputError(f"{path}: no rows", "one row per class folder: class,text")
    return labels


def warn_unmatched(path: Path, labels: Mapping[str, object], classes: Iterable[str]) -> None:
    """Log a warning where no row of a labels file is of any of the classes, which then keep their folders' names."""
    wanted = list(dict.fromkeys(classes))
    if not labels.keys() & {class_key(name) for name in wanted}:
        _log.warning(
            "%s: no row is of a class, the folders' names are used; its rows: %s; the classes: %s",
            path,
            named(labels),
            named(wanted),
        )


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_LABELS_BYTES + 1)
        if len(data) > MAX_LABELS_BYTES:
            raise InputError(f"{path}: larger than {MAX_LABELS_BYTES} bytes", "name a CSV file with columns class,text")
        content = data.decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(content, newline=""), skipinitialspace=True)
        columns = [column.strip() for column in reader.fieldnames or []]
        missing = [column for column in ("class", "text") if column not in columns]
        if missing:
            raise InputError(f"{path}: no column {' and '.join(missing)}", "the first line must be: class,text")
        reader.fieldnames = columns
        return [(reader.line_num, {k: v for k, v in row.items() if isinstance(v, str)}) for row in reader]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "name a CSV file with columns class,text") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a UTF-8 CSV file: {error}") from None


@dataclass(frozen=True)
class LabelRules:
    """How class folders become prompts.

    Attributes:
        template: Prompt with one `{}`.
        texts: Folder name to its text or texts, compared by `class_key`, of equal ones the last; folders not in it
            follow `text_from_folder`.

    Examples:
        >>> import m2df_runtime as m2df
        >>> rules = m2df.LabelRules("a video of {}", {"highfive": ("a high five", "two people clapping hands")})
        >>> rules.prompts("hand_waving"), rules.prompts("highfive")
        (('a video of hand waving',), ('a video of a high five', 'a video of two people clapping hands'))
    """

    template: str = "a photo of {}"
    texts: ClassTexts = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_template(self.template)
        object.__setattr__(self, "texts", {class_key(name): texts for name, texts in self.texts.items()})

    def over(self, texts: ClassTexts, template: str | None = None) -> LabelRules:
        """These rules with a user's texts over them, and the user's template where there is one."""
        template = self.template if template is None else template
        return LabelRules(template, {**self.texts, **{class_key(name): text for name, text in texts.items()}})

    def completed(self, texts: ClassTexts) -> LabelRules:
        """These rules with texts below theirs: a model keeps the spelling that it was trained with."""
        return LabelRules(self.template, texts).over(self.texts)

    def descriptions(self, folder: str) -> tuple[str, ...]:
        """Texts of a class folder, at least one."""
        texts = self.texts.get(class_key(folder)) or text_from_folder(folder)
        return (texts,) if isinstance(texts, str) else tuple(texts)

    def prompts(self, folder: str) -> tuple[str, ...]:
        """The prompts of a class folder, one for each of its texts."""
        return tuple(self.template.replace("{}", text) for text in self.descriptions(folder))


def prompt_embeddings(
    prompts: Iterable[Sequence[str]], encode: Callable[[Sequence[str]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """One embedding for each class [C, D]: the mean of its prompts', as CLIP averages them (arXiv 2103.00020, 3.1.4).

    Embeddings are averaged as they are: heads read their length too.

    Args:
        prompts: The prompts of each class.
        encode: Texts to embeddings [P, D]; called once, with every prompt once.
    """
    sets = [tuple(own) for own in prompts]
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompt for own in sets for prompt in own))}
    embeddings = encode(list(rows))
    return np.stack([embeddings[[rows[prompt] for prompt in own]].mean(axis=0) for own in sets])
