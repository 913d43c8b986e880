"""The routes: what each takes and gives. What they do is `Service`'s; what stands before them is `Guard`'s."""

from __future__ import annotations

import asyncio
import html
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import FastAPI, File, Form, Query, Request, UploadFile, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from m2df_runtime import __version__
from m2df_runtime.bank.folder import BACKGROUND, checked_label
from m2df_runtime.errors import M2dfError
from m2df_runtime.serve.access import COOKIE, Access
from m2df_runtime.serve.cameras import WatchedCameras
from m2df_runtime.serve.counts import RequestCounts
from m2df_runtime.serve.guard import IMPORT, Guard
from m2df_runtime.serve.live import BUSY, Session, hello
from m2df_runtime.serve.problems import Refused
from m2df_runtime.serve.service import Service, copied_answer, recording_stem
from m2df_runtime.serve.uploads import Received, received_file, received_frames

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
# The page of an answer may be shown inside the server's own page, and may do nothing but look as it does.
_PICTURES_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"
_DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

Times = Annotated[str | None, Form(description="JSON list of the frames' seconds, rising.")]
Frames = Annotated[list[UploadFile], File(description="JPEG pictures of a recording, in their order.")]
Clips = Annotated[list[UploadFile], File(description="Video files or animated pictures.")]
Trim = Annotated[bool | None, Form(description="Cut off still ends; without it, of frames.")]


class Renamed(BaseModel):
    """The body of a renaming."""

    model_config = ConfigDict(extra="forbid")

    label: str
    join: bool = False


class App:
    """The application of one server.

    Args:
        service: What it does.
        access: Who may ask it.
        cameras: What it watches besides.

    Attributes:
        asgi: It, for a server of ASGI.
    """

    def __init__(self, service: Service, access: Access, cameras: WatchedCameras | None = None) -> None:
        self._service, self._access, self._cameras = service, access, cameras
        self._sessions: dict[str, Session] = {}
        self._count = 0
        app = FastAPI(
            title="m2df",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            lifespan=self._life,
            redirect_slashes=False,
        )
        self._add_routes(app)
        _add_errors(app, service)
        counts = RequestCounts()
        service.metrics.registry.register(cast("Collector", counts))  # which it is, without loading it for its name
        self.asgi = Guard(app, access, service.limits, counts)

    @asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        self._service.board.open()
        warming = asyncio.create_task(self._warm())
        try:
            yield
        finally:
            warming.cancel()
            with suppress(asyncio.CancelledError):
                await warming

    async def _warm(self) -> None:
        try:
            await run_in_threadpool(self._service.warm)
        except (M2dfError, OSError, Refused) as error:
            _log.error("not ready: %s", error)

    def end(self) -> None:
        """Let go of all that would wait for ever, on the server's loop."""
        self._service.board.close()
        for session in [*self._sessions.values()]:
            session.stop()

    def _add_routes(self, app: FastAPI) -> None:
        get, post = app.get, app.post
        get("/healthz", tags=["probes"])(self.health)
        get("/readyz", tags=["probes"])(self.readiness)
        get("/metrics", tags=["probes"], response_class=Response)(self.numbers)
        post("/v1/session", tags=["access"])(self.session)
        post("/v1/predict", tags=["asking"])(self.predict)
        get("/v1/answers/{answer}", tags=["asking"])(self.answer)
        get("/v1/answers/{answer}/strip", tags=["asking"], response_class=Response)(self.answer_strip)
        get("/v1/answers/{answer}/explain", tags=["asking"], response_class=HTMLResponse)(self.explanation)
        get("/v1/classes", tags=["teaching"])(self.classes)
        get("/v1/findings", tags=["teaching"])(self.findings)
        post("/v1/classes/{label}/clips", tags=["teaching"])(self.teach)
        app.patch("/v1/classes/{label}", tags=["teaching"])(self.rename)
        app.delete("/v1/classes/{label}", tags=["teaching"])(self.forget)
        app.delete("/v1/classes/{label}/clips/{clip}", tags=["teaching"])(self.forget_clip)
        get("/v1/classes/{label}/clips/{clip}/strip", tags=["teaching"], response_class=Response)(self.strip)
        post("/v1/background", tags=["teaching"])(self.teach_nothing)
        app.delete("/v1/background/{clip}", tags=["teaching"])(self.forget_nothing)
        get("/v1/background/{clip}/strip", tags=["teaching"], response_class=Response)(self.nothing_strip)
        post("/v1/undo", tags=["teaching"])(self.undo)
        get("/v1/export", tags=["carrying"], response_class=FileResponse)(self.export)
        post(IMPORT, tags=["carrying"])(self.import_)
        get("/v1/cameras", tags=["events"])(self.cameras)
        get("/v1/events", tags=["events"], response_class=StreamingResponse)(self.events)
        app.websocket("/v1/live")(self.live)
        get("/docs", include_in_schema=False)(lambda: _docs(app))
        if (PAGE / "index.html").is_file():
            get("/", include_in_schema=False)(lambda: FileResponse(PAGE / "index.html"))
            get("/favicon.ico", include_in_schema=False)(lambda: FileResponse(PAGE / "favicon.svg"))
            app.mount("/page", StaticFiles(directory=PAGE))

    # Probes

    def health(self) -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    def readiness(self) -> JSONResponse:
        """Whether the model is loaded and warm."""
        ready = self._service.ready
        return JSONResponse({"status": "ready" if ready else "loading"}, 200 if ready else 503)

    def numbers(self) -> Response:
        """What Prometheus asks for."""
        page, kind = self._service.metrics.page()
        return Response(page, headers={"content-type": kind})

    # Access

    def session(self, request: Request) -> JSONResponse:
        """Set a cookie that stands for the token, for what a browser asks without headers of its own."""
        answer = JSONResponse({"status": "ok"})
        answer.set_cookie(
            COOKIE,
            self._access.session,
            path="/",  # the description of the interface, too
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    # Asking

    def predict(
        self,
        clip: Annotated[UploadFile | None, File(description="A video file or animated picture.")] = None,
        frames: Frames = [],  # noqa: B006 - FastAPI copies it
        times: Times = None,
        topk: Annotated[int | None, Query(ge=1, le=100_000)] = None,
    ) -> dict[str, object]:
        """Recognise the action in a clip, or in a recording's frames."""
        with self._service.folder() as place:
            (received,) = _received([clip] if clip else [], frames, times, place)
            return self._service.predict(received, place).record(topk)

    def answer(self, answer: str) -> dict[str, object]:
        """An answer that was given before."""
        return self._service.answers.get(answer).record()

    def answer_strip(self, answer: str) -> Response:
        """The frames that an answer is from, side by side, as JPEG."""
        return Response(self._service.answer_strip(answer), media_type="image/jpeg")

    def explanation(self, answer: str) -> HTMLResponse:
        """Why an answer is what it is: a page without scripts."""
        page = self._service.explain(answer)
        return HTMLResponse(page, headers={"content-security-policy": _PICTURES_POLICY})

    # Teaching

    def classes(self) -> dict[str, object]:
        """What is taught: classes and background with their clips, and when answers are rejected."""
        return self._service.view()

    def findings(self) -> list[dict[str, object]]:
        """What looks wrong in what is taught, as `m2df-run bank lint` finds it."""
        return self._service.findings()

    def teach(
        self,
        label: str,
        clips: Clips = [],  # noqa: B006
        frames: Frames = [],  # noqa: B006
        times: Times = None,
        answer: Annotated[str | None, Form(description="The id of an answer, whose clip is taught.")] = None,
        trim: Trim = None,
    ) -> dict[str, str]:
        """Teach an action by clips, by the frames of a recording, or by the clip of an answer."""
        checked_label(label)
        return self._taught(label, clips, frames, times, answer, trim, None)

    def teach_nothing(
        self,
        clips: Clips = [],  # noqa: B006
        frames: Frames = [],  # noqa: B006
        times: Times = None,
        answer: Annotated[str | None, Form(description="The id of an answer, whose clip is taught.")] = None,
        cut: Annotated[float | None, Form(ge=0.5, le=60, description="Seconds of the pieces to cut it into.")] = None,
    ) -> dict[str, str]:
        """Teach what belongs to no class."""
        return self._taught(BACKGROUND, clips, frames, times, answer, False, cut)

    def _taught(
        self,
        label: str,
        clips: list[UploadFile],
        frames: list[UploadFile],
        times: str | None,
        answer: str | None,
        trim: bool | None,
        cut: float | None,
    ) -> dict[str, str]:
        kept = self._service.answers.get(answer) if answer else None
        with self._service.folder() as place, _none_of(len(clips), self._service):
            if kept and not clips and not frames:
                received = [copied_answer(kept, place)]
            elif kept:
                raise Refused(422, "input", "an answer and clips are given", "send one of the two")
            else:
                received = _received(clips, frames, times, place)
            wanted = bool(frames) if trim is None else trim
            return {"did": self._service.add(label, received, place, trim=wanted, cut=cut)}

    def rename(self, label: str, body: Renamed) -> dict[str, str]:
        """Give a class another name; with `join`, that of another class, which its clips join."""
        return {"did": self._service.rename(label, body.label, join=body.join)}

    def forget(self, label: str) -> dict[str, str]:
        """Forget a class."""
        return {"did": self._service.remove(label)}

    def forget_clip(self, label: str, clip: str) -> dict[str, str]:
        """Forget a clip of a class."""
        return {"did": self._service.remove(label, clip)}

    def strip(self, label: str, clip: str) -> Response:
        """A clip's frames side by side, as JPEG."""
        return Response(self._service.strip(label, clip), media_type="image/jpeg")

    def forget_nothing(self, clip: str) -> dict[str, str]:
        """Forget a clip of the background."""
        return {"did": self._service.remove(BACKGROUND, clip)}

    def nothing_strip(self, clip: str) -> Response:
        """The frames of a clip of the background side by side, as JPEG."""
        return Response(self._service.strip(BACKGROUND, clip), media_type="image/jpeg")

    def undo(self) -> dict[str, str]:
        """Take the last change back; once more makes it again."""
        return {"did": self._service.undo()}

    # Carrying

    def export(self) -> FileResponse:
        """All clips as a zip, one folder per class."""
        path = self._service.export()
        return FileResponse(
            path, media_type="application/zip", filename="actions.zip", background=BackgroundTask(path.unlink)
        )

    def import_(self, file: Annotated[UploadFile, File(description="A zip as the export has it.")]) -> dict[str, str]:
        """Take a zip's clips in place of all that is taught; undo takes it back."""
        with self._service.folder() as place:
            received = received_file(file.file, "import", place)
            assert received.path is not None
            return {"did": self._service.replace(received.path, place)}

    # Events

    def cameras(self) -> list[dict[str, object]]:
        """How the cameras are that the server watches."""
        return self._cameras.records() if self._cameras else []

    async def events(self, request: Request) -> StreamingResponse:
        """Events as they happen, server-sent. `Last-Event-ID` tells those that were missed."""
        last = request.headers.get("last-event-id", "")
        lines = self._service.board.read(int(last) if last.isascii() and last.isdigit() and len(last) < 16 else None)
        return StreamingResponse(lines, media_type="text/event-stream")

    async def live(self, socket: WebSocket, window: str | None = None, stride: str | None = None) -> None:
        """A browser's camera: see docs/serve.md."""
        await socket.accept()
        if not await hello(socket, self._access.allows, self._access.allowed(dict(socket.scope))):
            return
        if len(self._sessions) >= self._service.limits.sessions:
            await socket.send_json({"type": "error", **_MANY.record()})
            await socket.close(BUSY, _MANY.message)
            return
        self._count += 1
        name = f"live {self._count}"
        session = self._sessions[name] = Session(socket, self._service, name)
        try:
            await session.run(window, stride)
        finally:
            del self._sessions[name]


_MANY = Refused(429, "busy", "too many cameras are watched", "close one of the pages")


@contextmanager
def _none_of(count: int, service: Service) -> Iterator[None]:
    """Say of what is wrong with one of several clips that the others are not taught either."""
    try:
        yield
    except (Refused, M2dfError) as error:
        told = error if isinstance(error, Refused) else service.refused(error)
        if count < 2:
            raise
        message = f"{told.message}; none of the {count} clips is taught"
        raise Refused(told.status, told.code, message, told.hint, told.retry_after) from None


def _received(clips: list[UploadFile], frames: list[UploadFile], times: str | None, place: Path) -> list[Received]:
    """What was sent, as files. Raises Refused where that is nothing, or two things."""
    if bool(clips) == bool(frames):
        what = "clips and frames are sent" if clips else "no clip is sent"
        raise Refused(422, "input", what, "send clips, or frames with times")
    if frames:
        return [received_frames([frame.file for frame in frames], times, place, recording_stem())]
    return [received_file(clip.file, clip.filename, place, number) for number, clip in enumerate(clips, 1)]


def _add_errors(app: FastAPI, service: Service) -> None:
    """Every error in one shape."""

    def told(error: Refused) -> JSONResponse:
        headers = {} if error.retry_after is None else {"retry-after": f"{error.retry_after:.0f}"}
        return JSONResponse(error.record(), error.status, headers)

    @app.exception_handler(Refused)
    def _(request: Request, error: Refused) -> JSONResponse:
        return told(error)

    @app.exception_handler(M2dfError)
    def _(request: Request, error: M2dfError) -> JSONResponse:
        return told(service.refused(error))

    @app.exception_handler(OSError)
    def _(request: Request, error: OSError) -> JSONResponse:
        return told(service.refused(error))

    @app.exception_handler(RequestValidationError)
    def _(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        return told(Refused(422, "input", f"{where}: {first['msg']}"[:300], "/openapi.json says what is taken"))

    @app.exception_handler(HTTPException)
    def _(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "no_route", 405: "method"}.get(error.status_code, "request")
        answer = told(Refused(error.status_code, code, str(error.detail), "/docs names the routes"))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    def _(request: Request, error: Exception) -> JSONResponse:
        return told(Refused(500, "fault", "the server failed", "see its log"))


def _docs(app: FastAPI) -> HTMLResponse:
    """The routes in a table: no script, and nothing from elsewhere."""
    rows = []
    for path, methods in app.openapi()["paths"].items():
        for method, what in methods.items():
            cells = (method.upper(), path, (what.get("description") or what["summary"]).partition("\n")[0])
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    style = "body{font:16px system-ui;margin:2rem;color-scheme:light dark}td{padding:.2rem 1rem .2rem 0}"
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>m2df: routes</title><style>{style}</style>'
        f'<h1>m2df {html.escape(__version__)}</h1><p>The schema is in <a href="/openapi.json">/openapi.json</a>.'
        f"<table>{''.join(rows)}</table></html>"
    )
    return HTMLResponse(page, headers={"content-security-policy": _DOCS_POLICY})
