"""Who learns in a run: the student, and the other adapters that its method trains beside it
(`methods.method.Role`), each with a `Descent` of its own.
"""

import dataclasses
import functools
import math

import torch

from ..methods.method import STUDENT, Batch, Context, Method
from ..ranks.ranks import ALONE, Ranks
from .config import DistilConfig
from .descent import Descent, usual_rate
from .student import Student

MEMORY = 0.95  # an update, of the running means of what the method tells


class Learners:
    """Their descents by name, and who is next.

    roles     of the method, by name, in the order in which they learn
    turned    of a `Context`: the update from which the roles matter, once it is known
    told      running means of what the method tells
    followed  updates of each role at the student's last one
    """

    def __init__(self, student: Student, config: DistilConfig, method: Method, ranks: Ranks = ALONE):
        self.student, self.config, self.method, self.ranks = student, config, method, ranks
        self.roles = {role.name: role for role in method.roles(config)}
        self.descents = {STUDENT: Descent(student.denoiser, student.lora, config, ranks)}
        for name, role in self.roles.items():
            self.descents[name] = Descent(
                student.denoiser, student.adapters[name], config, ranks, role.momentum, role=True
            )
        self.turned: int | None = None
        self.told: dict[str, float] = {}
        self.followed = dict.fromkeys(self.roles, 0)

    @property
    def first(self) -> int:
        """Updates of all roles before the student's first one."""
        return sum(role.first(self.config) for role in self.roles.values())

    @property
    def ahead(self) -> int:
        """How many of these are made."""
        return sum(min(role.first(self.config), self.made(name)) for name, role in self.roles.items())

    def made(self, name: str | None = None) -> int:
        """Updates so far of that adapter, None for all together."""
        if name is not None:
            return self.descents[name].done
        return sum(descent.done for descent in self.descents.values())

    @property
    def micro(self) -> int:
        """Samples of a pass of the adapter for which it is smallest."""
        return min(descent.micro for descent in self.descents.values())

    @property
    def skipped(self) -> int:
        """Updates left out as not finite, of all adapters."""
        return sum(descent.skipped for descent in self.descents.values())

    def due(self, context: Context) -> str:
        """Who learns next: a role that has to be ahead of the student, or the student."""
        if context.turned is None:
            return STUDENT
        for name, role in self.roles.items():
            made = self.made(name)
            goes_first = made < role.first(self.config)
            goes_along = role.each is not None and context.done > context.turned
            is_behind = goes_along and made - self.followed[name] < role.each(context)
            if goes_first or is_behind:
                return name
        return STUDENT

    def rate(self, name: str, turned: int | None) -> float:
        """The learning rate of that adapter's next update; turned: as of a `Context`."""
        config, method, made = self.config, self.method, self.made(name)
        if name != STUDENT:
            done, turned = self.made(STUDENT), turned or 0
            return self.roles[name].rate(config, made, (done - turned) / max(1, config.updates - turned))
        return usual_rate(config, made) if method.rate is None else method.rate(config, made, turned)

    def stage(self, name: str) -> str:
        """What a run is at while that adapter learns."""
        role = self.roles.get(name)
        return role.stage if role and self.made(name) <= role.first(self.config) else "training"

    def gradient(self, name: str, context: Context) -> tuple[Batch, torch.Tensor]:
        """Draw a batch and leave its gradient in that adapter; (batch, its losses (B,)). Cut off, it leaves
        none.
        """
        part = self.roles.get(name, self.method)
        _begin(self, name)
        batch = part.draw(_shared(context, self.ranks))
        return batch, self.descents[name].gradient(batch, functools.partial(part.loss, context))

    def forget(self, name: str) -> None:
        """Take back a gradient along which no step is made."""
        self.descents[name].forget()

    def step(self, name: str, batch: Batch, losses: torch.Tensor, turned: int | None) -> None:
        """Step along the gradient of those losses, and take down what the batch tells."""
        self.descents[name].step(losses, self.rate(name, turned))
        if name == STUDENT:
            self.followed = {other: self.made(other) for other in self.roles}
            for told in set(self.method.tells).intersection(batch):
                value = float(batch[told].nanmean())
                if math.isfinite(value):
                    self.told[told] = MEMORY * self.told.get(told, value) + (1 - MEMORY) * value
        elif self.roles[name].each is None and self.made(name) >= self.roles[name].first(self.config):
            self.descents[name].rest()

    def state(self, finished: bool = False) -> tuple[dict[str, torch.Tensor], dict]:
        """({name: tensor}, JSON-able dict) of adapters and optimisers, for `restore`; finished: without what
        only further updates want.
        """
        tensors, numbers = self.descents[STUDENT].state(finished)
        tensors |= {f"averaged.{i}": a for i, a in enumerate(self.student.averaged)}
        if self.roles:
            parts = {name: self.descents[name].state(finished) for name in self.roles}
            if not finished:
                tensors |= {f"{name}.{k}": v for name, (kept, _) in parts.items() for k, v in kept.items()}
            numbers["roles"] = {name: made for name, (_, made) in parts.items()}
            numbers |= {"told": self.told, "followed": self.followed, "turned": self.turned}
        return tensors, numbers

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict) -> None:
        """Take over what `state` gave."""
        self.descents[STUDENT].restore(tensors, numbers)
        with torch.no_grad():
            for i, average in enumerate(self.student.averaged):
                average.copy_(tensors[f"averaged.{i}"])
        for name, made in numbers.get("roles", {}).items():
            start = f"{name}."
            kept = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            self.descents[name].restore(kept, made)
        self.turned = numbers.get("turned")
        self.told, self.followed = numbers.get("told", {}), numbers.get("followed", self.followed)


def _shared(context, ranks):
    """The context of what is drawn for the whole batch: each process answers for its share of it. Where a
    model is in pieces, all make a pass with a gradient together: those shares are then equal, or the batch.
    """
    if ranks.world == 1 or not context.asked:
        return context

    def shared(answer, equally=False):
        def answered(*rows):
            count = len(rows[0])
            if count < ranks.world or (equally and count % ranks.world):
                return answer(*rows)
            mine = answer(*ranks.share(dict(enumerate(rows))).values())
            if ranks.meanwhile is not None:  # a larger share may take more calls
                ranks.meanwhile()
            return ranks.merged(mine, count)

        return answered

    equally = ranks.meanwhile is not None
    asked = {name: shared(answer) for name, answer in context.asked.items()}
    pulled = {name: shared(pull, equally) for name, pull in context.pulled.items()}
    return dataclasses.replace(context, asked=asked, pulled=pulled)


def _begin(learners, name):
    """Give a role that begins as another the weights of that, before its first update."""
    role, adapters = learners.roles.get(name), learners.student.adapters
    if role and learners.made(name) == 0 and role.begins_as in adapters:
        adapters[name].load(adapters[role.begins_as].parameters())
