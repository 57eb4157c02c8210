"""The run that is under way in this process: what the panel is told of it, and what the panel asks of it."""

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import comfy.model_management
import torch
from server import PromptServer

from ...diffusion.faults import BadValue
from ...training.formats.files import write, write_json
from ...training.formats.graph_texts import of_graph
from ...training.models.memory_errors import is_out_of_memory, recover
from ...training.reports import pictures
from ...training.run import runs
from ...training.run.job import Job
from ...training.run.machine import used
from ...training.run.progress import Progress
from ...training.run.status import PREVIEWS, PROMPT, Status
from ..comfy.decoding import decode
from ..comfy.families import names_of
from ..comfy.latents import first_frames
from ..comfy.spoken import made_by, texts_of
from . import messages

PROMPTS = "FewstepPrompts"  # the node
EVERY = 0.2  # seconds between events
SHOWN = 4  # pictures in a column
EVENT = "fewstep.run"
SLACK = 256 << 20  # bytes to stay free when a preview is decoded
LIVE: "dict[str, Live]" = {}  # by id
_undone = 0  # runs that were not finished when their node ended, or were deleted since


class Live:
    """A `training.run.job.Job` that runs: from the `with` block on until `ended`, when its state is on disk.

    order: what the node was asked for (`nodes.training.Order`). What the panel asks for (`pause`, `stop`)
    happens at the next call of the model or update.
    """

    def __init__(self, job: Job, order: Any):
        self.job, self.run, self.order, self.id = job, job.run, order, job.folder.name
        self.paused, self.over = False, False
        self.progress: Progress | None = None
        self.told, self.sent = 0.0, [0, 0]  # when the last event was; how much of both histories went out
        self.pictured: int | None = None  # update of the newest preview
        self.pictures = True  # whether any can be made
        self.run.denoiser.check = self.check

    def __enter__(self) -> "Live":
        notes = self.job.notes
        notes.setdefault("name", self.order.name)
        notes.update(
            model=model_name(self.order.prompt, self.order.node),
            family=names_of(self.order.model.model.model_config)[0],
        )
        prompts = self._prompts()
        notes["prompts"] = prompts if len(prompts) < 2 else notes.get("prompts", [])
        for name, message in (("weights", self.run.denoiser.weights), ("plan", self.run.denoiser.planned)):
            notes[name] = message and message.to_dict()
        self._store()
        LIVE[self.id] = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over = True
        self.run.denoiser.check = comfy.model_management.throw_exception_if_processing_interrupted
        self.send()

    def _prompts(self) -> list[str]:
        """The text of each prompt, as far as it is known."""
        positive = self.order.positive
        return texts_of(positive) or texts(self.order.prompt, self.order.node, len(positive))

    def _store(self):
        """Keep what the run can be queued again from: its node and all that feeds it.

        A graph that JSON can't hold is not kept.
        """
        graph = above(self.order.prompt or {}, self.order.node)
        _keep_prompts(graph, [*self.order.positive, *self.order.negative])
        try:
            if graph:
                json.dumps([graph, self.order.workflow], allow_nan=False)
                stored = {"prompt": graph, "workflow": self.order.workflow, "node": self.order.node}
                write_json(self.job.folder / PROMPT, stored)
        except (TypeError, ValueError, OSError) as error:
            logging.warning("Fewstep: this run can't be resumed from the panel (%s).", error)

    # ---- asked by the panel, from the server's thread ------------------------------------------

    def pause(self) -> bool:
        """End the job as if its user had cancelled it: state and LoRA are saved. False once it is over."""
        self.paused = not self.over
        return self.paused

    def stop(self) -> bool:
        """End the run after this update; False while there is nothing to keep, or once it is over."""
        if self.run.done and not self.over:
            self.run.stop()
        return bool(self.run.done) and not self.over

    def check(self) -> None:
        """Raise what the host raises for a cancelled job when the panel or the user asks for it."""
        if self.paused:
            raise comfy.model_management.InterruptProcessingException
        comfy.model_management.throw_exception_if_processing_interrupted()

    # ---- told to the panel ---------------------------------------------------------------------

    def tell(self, progress: Progress) -> None:
        """Note a step of the run, keep pictures of a new measurement, send an event unless one just went."""
        self.progress, notes = progress, self.job.notes
        notes["memory"] = used(self.run.denoiser.device)
        if progress.samples_per_second:
            notes["samples_per_second"] = round(progress.samples_per_second, 2)
        self._picture()
        if time.monotonic() - self.told >= EVERY:
            self.send()

    def send(self) -> None:
        """Send an event with the points since the last."""
        points = [h[n:] for h, n in zip((self.run.loss, self.run.probe.fidelity), self.sent)]
        self.told, self.sent = time.monotonic(), [len(self.run.loss), len(self.run.probe.fidelity)]
        _send(self.summary(), *points)

    def summary(self) -> dict[str, Any]:
        """The run's `Status` as it is at this moment, as JSON has it."""
        progress = self.progress
        draws = progress is None or progress.stage == "sampling the teacher"
        state = "sampling" if draws else "running"
        status = Status.of(self.run, self.job.folder, state, time.time(), self.job.notes, progress)
        stage = progress.stage if progress else "getting ready"
        return messages.of_run(dataclasses.replace(status, stage=stage, error=None).to_dict())

    # ---- pictures ------------------------------------------------------------------------------

    def _picture(self):
        """Columns of pictures from the probe's noise: teacher and before once, now after each measurement."""
        run, probe = self.run, self.run.probe
        if probe.drawn is None or not self.pictures or self.pictured == probe.fidelity[-1][0]:
            return
        self.pictured = probe.fidelity[-1][0]
        prompts = self._prompts()
        if len(prompts) > 1:
            self.job.notes["prompts"] = [prompts[i] for i in probe.held.condition[:SHOWN].tolist()]
        try:
            folder = self.job.folder / PREVIEWS
            folder.mkdir(exist_ok=True)
            if not (folder / "before.png").exists():
                self._column(folder / "teacher.png", probe.held.reference[:SHOWN])
                self._column(folder / "before.png", run.task.before(probe.held.first(SHOWN)))
            self._column(folder / f"{self.pictured}.png", probe.drawn[:SHOWN])
        except Exception as error:  # pictures are a courtesy: a run does not end for want of them
            logging.warning("Fewstep: no previews of this run (%s).", error)
            self.pictures = False
            if is_out_of_memory(error):
                recover()

    def _column(self, path, latents):
        model, vae = self.run.denoiser.model, self.order.vae
        latents = self.run.task.finished(latents, self.run.probe.held.condition[: len(latents)])
        latents = first_frames(model, latents.detach().cpu())
        if vae is not None and _fits(vae, latents, self.run.denoiser.device):
            pixels = decode(vae, model.process_latent_out(latents))
            if not comfy.model_management.is_device_cpu(vae.device):  # whose memory the run was promised
                vae.patcher.detach()
        else:
            pixels = rough(model.latent_format, latents)
        write(path, pictures.png(pictures.column(pixels)))


def ended(folder: Path) -> None:
    """Let a run go, and tell the panel how it stands on disk."""
    LIVE.pop(folder.name, None)
    found = runs.summary(folder)
    if found is None or found["state"] != "finished":
        undone()
    if found:
        _send(messages.of_run(found))


def undone() -> None:
    """Take down that a run is not what its node left behind as its result, or won't be."""
    global _undone
    _undone += 1


def revision() -> int:
    """Another number whenever a training node, queued with nothing changed, has something to do: the host
    would take its result of before, also of a run that was stopped early or is deleted.
    """
    return _undone


def _send(summary: dict[str, Any], loss: Sequence = (), fidelity: Sequence = ()) -> None:
    server = getattr(PromptServer, "instance", None)  # none when ComfyUI is used as a library
    if server is not None:
        found = runs.shown(loss, fidelity)
        server.send_sync(EVENT, {"run": summary, "loss": found["loss"], "fidelity": found["fidelity"]})


def rough(latent_format: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as small pictures (N, 3, H, W) in [-1, 1], by the family's own colours, without a VAE.

    Of a video, the first frame.
    """
    factors = latent_format.latent_rgb_factors
    if factors is None:
        raise BadValue("this family's latents have no colours without a VAE; wire one")
    x = latents[:, :, 0] if latents.ndim == 5 else latents
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    if reshape is not None:
        x = reshape(x)
    bias = torch.tensor(latent_format.latent_rgb_factors_bias or [0.0, 0.0, 0.0])
    return torch.einsum("nchw,cr->nrhw", x.float(), torch.tensor(factors)) + bias[:, None, None]


def _fits(vae, latents, device):
    """Whether the VAE can decode while the model in training stays, by what the host asks for at most."""
    management = comfy.model_management
    if management.is_device_cpu(vae.device):
        return management.is_device_cpu(device)  # else it would hold up the GPU
    reserved = management.extra_reserved_memory()
    work = max(
        management.minimum_inference_memory(), vae.memory_used_decode(latents.shape, vae.vae_dtype) + reserved
    )
    return management.get_free_memory(vae.device) > SLACK + 1.1 * vae.patcher.model_size() + work


def _keep_prompts(graph, conditioning):
    """Let the nodes that choose prompts give those again which they gave now: their sources change, and with
    other prompts it would be another run.
    """
    for name, node in graph.items():
        made = made_by(name, conditioning) if node.get("class_type") == PROMPTS else None
        if made:
            node["inputs"] = {**node["inputs"], **made}


def above(prompt: dict, node: str | None) -> dict:
    """The part of an API-format graph that a node needs, itself included.

    {} where the node is not in it, as with one that was expanded.
    """
    found, nodes = {}, [node] if node in prompt else []
    while nodes:
        at = nodes.pop()
        if at in found or at not in prompt:
            continue
        found[at] = {k: v for k, v in prompt[at].items() if k != "is_changed"}
        nodes += [
            str(v[0]) for v in found[at].get("inputs", {}).values() if isinstance(v, list) and len(v) == 2
        ]
    return found


def texts(prompt: dict | None, node: str | None, count: int) -> list[str]:
    """The text of a node's only prompt; [] where there are several, or it is not in the graph."""
    found = of_graph(above(prompt or {}, node))[0]
    return list(found) if count == 1 and len(found) == 1 else []


def model_name(prompt: dict | None, node: str | None) -> str:
    """What the user calls the model wired to a node of an API-format graph.

    The nearest loader's file or choice; "" if none.
    """
    names, seen, nodes = ("ckpt_name", "unet_name", "model_name", "teacher"), set(), [node]
    while nodes and prompt:
        at = nodes.pop(0)
        inputs = prompt.get(at, {}).get("inputs", {})
        for key in names:
            if at != node and isinstance(inputs.get(key), str):
                return inputs[key]
        links = [
            v
            for k, v in sorted(inputs.items(), key=lambda item: item[0] != "model")
            if isinstance(v, list) and len(v) == 2
        ]
        nodes += [str(v[0]) for v in links if str(v[0]) not in seen]
        seen.update(str(v[0]) for v in links)
    return ""
