"""The panel's routes: GET for what is known of runs, POST to control them and to say which language is shown.

Events come from `live`.

Run ids are looked up among the folders that are there, and never become part of a path.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import folder_paths
from aiohttp import web
from server import PromptServer

from ...diffusion.faults import BadValue, Failed, Fault, Message, NotFound, message_of
from ...training.formats.files import cause
from ...training.run import runs
from ...training.run.job import delete
from ...training.run.status import PROMPT
from ..comfy import folders
from . import messages
from .exports import copy_of
from .live import LIVE, undone

MOST_BODY = 1024  # bytes; no route reads one
MOST_NAME = 200  # characters
ROUTE = "/fewstep/runs/{id}"
GONE = "fewstep.gone"  # the event of a run that was deleted


def register(more: Mapping[str, Callable[[web.Request], web.StreamResponse]] = MappingProxyType({})) -> None:
    """Add the routes to ComfyUI's server, which serves them below /api too.

    more: {path: what answers GET there}.
    """
    routes = PromptServer.instance.routes
    for path, handler in (
        ("/fewstep/runs", listing),
        (ROUTE, single),
        (f"{ROUTE}/curves", curves),
        (f"{ROUTE}/settings", settings),
        (f"{ROUTE}/preview/{{column}}", preview),
        (f"{ROUTE}/prompt", prompt),
        ("/fewstep/model", model),
        *more.items(),
    ):
        routes.get(path)(_answered(handler))
    orders = {"pause": pause, "stop": stop, "delete": remove, "rename": rename, "export": export}
    for name, handler in orders.items():
        routes.post(f"{ROUTE}/{name}")(_answered(handler))
    routes.post("/fewstep/language/{name}")(_answered(language))


class Refusal(Fault):
    """What a route refuses: a code that the panel has words for, and an HTTP status."""

    def __init__(self, key: str, /, *, code: str, status: int, **fields: Any):
        super().__init__(key, **fields)
        self.code, self.status = code, status


def _answered(handler: Callable[[web.Request], web.StreamResponse]) -> Callable:
    """The handler with its refusals as JSON, run off the server's loop as it reads files."""

    async def answer(request):
        try:
            if (request.content_length or 0) > MOST_BODY or request.headers.get("Transfer-Encoding"):
                raise Refusal(
                    "The body must be at most {most} bytes; no route here reads one.",
                    code="bad-request",
                    status=413,
                    most=MOST_BODY,
                )
            return await asyncio.to_thread(handler, request)
        except Refusal as refusal:
            return _refused(refusal.message, refusal.code, refusal.status)
        except OSError as error:
            message = Message("The run's files can't be used ({cause}).", cause=cause(error))
            return _refused(message, "bad-request", 409)
        except LookupError as error:
            return _refused(message_of(error), "unknown-run", 404)
        except Fault as fault:
            return _refused(fault.message, "refused", 409)

    return answer


def _refused(message, code, status):
    return _json({"error": {"code": code, "message": messages.told(message)}}, status)


def _json(value, status=200):
    return web.json_response(value, status=status, headers={"Cache-Control": "no-store"})


def _folder(request):
    return runs.find(folders.of_user("runs"), request.match_info["id"])


def _live(request):
    found = LIVE.get(_folder(request).name)
    if found is None:
        raise Refusal("This run must be under way for that, and is not.", code="not-running", status=409)
    return found


def listing(request: web.Request) -> web.Response:
    """GET /fewstep/runs."""
    live = [live.summary() for live in list(LIVE.values())]
    others = runs.listing(folders.of_user("runs"), {run["id"] for run in live})
    return _json({"runs": sorted([*live, *map(messages.of_run, others)], key=lambda run: -run["started_at"])})


def single(request: web.Request) -> web.Response:
    """GET /fewstep/runs/{id}."""
    folder = _folder(request)
    live = LIVE.get(folder.name)
    found = live.summary() if live else messages.of_run(runs.summary(folder))
    if found is None:
        raise NotFound("This run's status can't be read. Queue it again.")
    return _json(found)


def curves(request: web.Request) -> web.Response:
    """GET /fewstep/runs/{id}/curves."""
    folder = _folder(request)
    live = LIVE.get(folder.name)
    if live:
        return _json(runs.shown(list(live.run.loss), list(live.run.probe.fidelity)))
    return _json(runs.curves(folder))


def settings(request: web.Request) -> web.Response:
    """GET /fewstep/runs/{id}/settings: those that the run really has, and where its folder is."""
    folder = _folder(request)
    return _json({"settings": runs.settings(folder), "folder": str(folder)})


def preview(request: web.Request) -> web.FileResponse:
    """GET /fewstep/runs/{id}/preview/{column}."""
    return web.FileResponse(
        runs.preview(_folder(request), request.match_info["column"]),
        headers={"Cache-Control": "no-cache", "Content-Type": "image/png"},
    )


def prompt(request: web.Request) -> web.FileResponse:
    """GET /fewstep/runs/{id}/prompt."""
    file = _folder(request) / PROMPT
    if not file.exists():
        raise NotFound("This run has no stored graph. Queue its workflow again.")
    return web.FileResponse(file, headers={"Cache-Control": "no-store", "Content-Type": "application/json"})


def model(request: web.Request) -> web.Response:
    """GET /fewstep/model?checkpoint=NAME or ?unet=NAME."""
    from ..comfy.model_info import describe

    kind, name = next(iter(request.query.items()), ("", ""))
    if kind not in ("checkpoint", "unet") or len(request.query) != 1:
        raise Refusal(
            "The query must be checkpoint or unet with the name of a file.", code="bad-request", status=400
        )
    return _json(describe(kind, name))


def language(request: web.Request) -> web.Response:
    """POST /fewstep/language/{name}: which one the frontend shows."""
    return _json({"language": messages.hear(request.match_info["name"])})


def pause(request: web.Request) -> web.Response:
    """POST /fewstep/runs/{id}/pause."""
    if not _live(request).pause():
        raise Refusal("This run is at its end already, and being saved.", code="not-running", status=409)
    return _json({})


def stop(request: web.Request) -> web.Response:
    """POST /fewstep/runs/{id}/stop."""
    if not _live(request).stop():
        raise Refusal(
            "The run must have trained for that, and has not begun to. Pause it instead.",
            code="not-running",
            status=409,
        )
    return _json({})


def rename(request: web.Request) -> web.Response:
    """POST /fewstep/runs/{id}/rename?name=NAME: what the list calls the run; its files stay as they are."""
    folder, name = _folder(request), request.query.get("name", "").strip()
    if not 0 < len(name) <= MOST_NAME:
        raise Refusal(
            "name must have 1 to {most} characters, got {count}.",
            code="bad-request",
            status=400,
            most=MOST_NAME,
            count=len(name),
        )
    if live := LIVE.get(folder.name):
        live.job.notes["name"] = name
    else:
        try:
            runs.rename(folder, name)
        except Failed as error:
            raise Refusal("{error}", code="refused", status=409, error=error.message) from error
    return _json({"name": name})


def export(request: web.Request) -> web.Response:
    """POST /fewstep/runs/{id}/export?to=comfyui|diffusers&precision=fp32|fp16|bf16: a copy of the
    run's LoRA in other keys or fewer bits, beside it.
    """
    found = runs.summary(_folder(request))
    known = folder_paths.get_full_path("loras", found["lora"]) if found and found["lora"] else None
    if known is None:
        raise NotFound("This run's LoRA file is not in models/loras. It has been moved, renamed or deleted.")
    options = {name: request.query[name] for name in ("to", "precision") if name in request.query}
    try:
        return _json({"file": copy_of(Path(known), **options).name})
    except BadValue as error:
        raise Refusal("{error}", code="refused", status=409, error=error.message) from error


def remove(request: web.Request) -> web.Response:
    """POST /fewstep/runs/{id}/delete."""
    folder = _folder(request)
    if folder.name in LIVE or not delete(folder):
        raise Refusal("The run must be over to be deleted. Pause it first.", code="running", status=409)
    undone()
    PromptServer.instance.send_sync(GONE, {"id": folder.name})  # other pages show it too
    return _json({})
