"""Whether weights that would be fetched can be: asked once, before libraries try for a minute in silence."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from urllib.parse import urlsplit

from m2df_runtime.errors import first_line

_PATIENCE = 3.0  # seconds for one answer, for which a satellite's line needs two with its handshakes
_HUB_PREFIX, _FOLDER_PREFIX = "hf-hub:", "local-dir:"

LOCAL_HINT = (
    "without a network, name a folder that holds the model and its weights: m2df-train --set model=local-dir:PATH, "
    "m2df-train import --text-model local-dir:PATH, m2df-export --model local-dir:PATH"
)


def server_of(open_clip: ModuleType, model: str, pretrained: str | None) -> str | None:
    """Address that weights are fetched from where they are not on this machine; None where nothing is fetched."""
    from huggingface_hub import constants

    if model.startswith(_FOLDER_PREFIX):
        return None
    if model.startswith(_HUB_PREFIX):
        return constants.ENDPOINT
    found = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained) if pretrained else None
    if not found or "file" in found:
        return None
    return constants.ENDPOINT if found.get("hf_hub") else found.get("url") or None


def why_unreachable(server: str) -> str | None:
    """Why a server cannot be asked; None where it answers, whatever it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and server == constants.ENDPOINT:
        return "HF_HUB_OFFLINE is set"
    outcome: list[str | None] = []
    # A look-up of a name cannot be given a time, so that it has a thread that is left behind.
    asking = threading.Thread(target=lambda: outcome.append(_ask(server)), daemon=True)
    asking.start()
    asking.join(_PATIENCE + 1)
    reason = outcome[0] if outcome else "no answer"
    return reason and f"{urlsplit(server).hostname}: {reason}"


def _ask(server: str) -> str | None:
    from huggingface_hub.utils import get_session

    try:
        get_session().head(server, timeout=_PATIENCE)  # through the proxy and certificates of the download itself
    except Exception as error:  # of whichever HTTP client the installed version uses
        return first_line(error)
    return None


@contextmanager
def on_this_machine() -> Iterator[None]:
    """A block in which libraries take what they fetched before, and do not try to fetch what is missing."""
    from huggingface_hub import constants

    hub, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    constants.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(_PATIENCE)  # some weights come by urllib, which would wait for ever
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = hub
        socket.setdefaulttimeout(timeout)
