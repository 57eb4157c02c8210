"""What several processes of one run have to agree on, looked at before anything long begins."""

import json
import secrets
import time
from pathlib import Path
from typing import Any

import torch

from ...diffusion.faults import BadValue
from ..formats.files import write
from ..formats.version import VERSION
from ..models.denoiser import Denoiser
from ..ranks.ranks import Ranks
from ..run.machine import available
from ..run.memory import weights_of
from ..trajectories.noises import noises, start
from .spec import Spec
from .start_from import StartFrom

PATIENCE = 5.0  # seconds until a new file in a folder of the network is seen everywhere
SAMPLED = 256  # values of an answer
ALIKE = 0.05  # of an answer's size: two kinds of card round differently, other weights answer otherwise


def check_given(ranks: Ranks, what: dict[str, Any]) -> None:
    """Raise ValueError where processes have other versions, or were given something else."""
    versions = {"version of Fewstep": VERSION, "version of PyTorch": torch.__version__}
    ranks.check_same(json.loads(json.dumps(versions | what)))


def of_spec(spec: Spec, settings: dict[str, Any], start: StartFrom | None = None) -> dict[str, Any]:
    """What a distillation is given, as `check_given` names it. Files may lie elsewhere; start: what it
    begins with.
    """
    return {
        "prompts": spec.prompts,
        "negative prompt": spec.negative,
        "size": [spec.width, spec.height],
        "precision of the weights": spec.dtype,
        "settings": dict(sorted(settings.items())),
        "LoRA to start from": start and start.digest,
        "--start-partly": bool(start and start.partly),
    }


def check_weights(ranks: Ranks, denoiser: Denoiser) -> None:
    """Raise ValueError where processes have other weights, by their fingerprint."""
    ranks.check_same({"weights": denoiser.base, "shape of a sample": list(denoiser.shape)})


def check_answers(ranks: Ranks, denoiser: Denoiser) -> None:
    """Raise ValueError where the model answers otherwise to its first or its last prompt, in which its text
    encoders have a part too.
    """
    if ranks.world == 1:
        return
    answers = ranks.all(_answer(denoiser))
    first = torch.tensor(answers[0])
    for rank, answer in enumerate(answers):
        off = float((torch.tensor(answer) - first).norm() / first.norm())
        if not off <= ALIKE:
            raise BadValue(
                "the model must answer alike in all processes, and in process {rank} it answers otherwise "
                "than in process 0, by {off:.2g} of the size. Give both the same weights, text encoders "
                "included.",
                rank=rank,
                off=off,
            )


@torch.no_grad()
def _answer(denoiser):
    sigma = denoiser.sigma_of(torch.tensor([0.7], dtype=torch.float64)).float()
    noise = noises(0, range(2), denoiser.shape)
    x = start(noise, [*sigma.tolist(), 0.0], denoiser.path, denoiser.noise_scale)
    condition = torch.tensor([0, denoiser.conditions - 1])
    found = denoiser(x, sigma.expand(2), condition).flatten()
    pick = torch.linspace(0, len(found) - 1, min(SAMPLED, len(found)), dtype=torch.float64).long()
    return found[pick].float().tolist()


def check_shared(ranks: Ranks, folder: Path, said: bool) -> bool:
    """Whether all processes see that folder; raises ValueError where one does not though that was said."""
    if ranks.world == 1:
        return True
    mark = folder / ranks.first(f".fewstep-{secrets.token_hex(4)}")
    if ranks.leads:
        write(mark, b"")
    seen, until = ranks.first(None) is None and mark.exists(), time.monotonic() + PATIENCE
    while not seen and time.monotonic() < until:
        ranks.check()
        time.sleep(0.1)
        seen = mark.exists()
    found = ranks.all([seen, ranks.host])
    if ranks.leads:
        mark.unlink(missing_ok=True)
    blind = next(((rank, host) for rank, (seen, host) in enumerate(found) if not seen), None)
    if blind and said:
        raise BadValue(
            "out must be a folder that all processes see, as --shared says, and process {rank} on {host} "
            "does not see in {folder} what process 0 has written there. Mount it there too, or leave "
            "--shared out: the trajectories are then brought to each machine.",
            rank=blind[0],
            host=blind[1],
            folder=folder,
        )
    return blind is None


def budget(ranks: Ranks, denoiser: Denoiser, memory: float | None) -> float | None:
    """Bytes that this process may take: as given, or on the CPU its part of what is free; None for all."""
    if memory is not None or ranks.neighbours == 1 or torch.device(denoiser.device).type != "cpu":
        return memory
    return available("cpu") / ranks.neighbours + weights_of(denoiser)
