"""How the end of a run moves with its solver's weights and levels, for few model calls.

A change of a weight or a level moves the state by some t, so the next prediction by J t, with J the
derivative of the prediction in the state. Each J t would cost a model call, for some n^2 / 2 parameters at
each of n steps. But the changes of one sample's state are much alike, as its predictions are: perturbed
copies of the sample in the few main directions of all its t stand for all of them. Derivatives of the whole
run so cost at most n (RANK + 1) calls.

Everything lies in the span of a few pictures a sample, the basis: the start, the predictions, what those
change by. Derivatives are weights on it and inner products are the basis's, so that memory does not grow
with the number of parameters.
"""

import dataclasses
from collections.abc import Sequence

import torch

from ..paths import Path
from .linear import Ask, LinearSolver, Step
from .refine import LEVEL_STEP, Parameter, shifted

RANK = 5  # perturbed copies of a sample at a step
SMALLEST = 1e-5  # share of all changes, squared, that a direction must have for a copy


class Basis:
    """R pictures of each of B samples, flat, and their inner products (B, R, R), float64."""

    def __init__(self):
        self.pictures: list[torch.Tensor] = []
        self.products: torch.Tensor | None = None

    def add(self, picture: torch.Tensor) -> int:
        """The place that a picture (B, ...) is put at; samples of it that are not finite count as 0."""
        flat = picture.flatten(1)
        flat = torch.where(flat.isfinite().all(1, keepdim=True), flat, 0.0)
        self.pictures.append(flat)
        new, count = self.onto(flat), len(self.pictures)
        grown = new.new_zeros(len(new), count, count)
        if count > 1:
            grown[:, :-1, :-1] = self.products
        grown[:, -1], grown[:, :, -1] = new, new
        self.products = grown
        return count - 1

    def onto(self, picture: torch.Tensor) -> torch.Tensor:
        """Inner products (B, R) of a picture (B, D) with all."""
        return torch.stack([(picture * other).sum(1) for other in self.pictures], 1).double().cpu()

    def combined(self, weights: torch.Tensor) -> torch.Tensor:
        """The sum of all pictures with those weights (B, R), (B, D)."""
        out = torch.zeros_like(self.pictures[0])
        for weight, picture in zip(weights.to(out).unbind(1), self.pictures):
            out.addcmul_(weight[:, None], picture)
        return out


@dataclasses.dataclass
class Tangents:
    """The derivatives of a run's states in its solver's parameters: for each step weights (B, P, R) on the
    basis of the state after it.
    """

    parameters: list[Parameter]
    basis: Basis
    weights: list[torch.Tensor]

    def moved(self, change: torch.Tensor) -> list[torch.Tensor]:
        """How far each state moves (B, D) when the parameters change by that (P,)."""
        return [
            self.basis.combined(torch.einsum("p,bpr->br", change[: weights.shape[1]], weights))
            for weights in self.weights
        ]

    def corrected(self, pull: torch.Tensor, missed: Sequence[torch.Tensor]) -> None:
        """Add pull (P,) times the pictures `missed` (B, D) to the derivatives, one for each step."""
        places = [self.basis.add(picture) for picture in missed]
        for number, place in enumerate(places):
            weights = _padded(self.weights[number], len(self.parameters), self.basis)
            weights[:, :, place] = pull
            self.weights[number] = weights

    def add(self, step: int, parameter: Parameter, picture: torch.Tensor) -> None:
        """Add a picture (B, D) to the derivative of the state after a step in one parameter."""
        place = self.basis.add(picture)
        weights = _padded(self.weights[step], len(self.parameters), self.basis)
        weights[:, self.parameters.index(parameter), place] += 1
        self.weights[step] = weights

    def equations(
        self, missing: Sequence[torch.Tensor], shares: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(gram (P, P), slope (P,)) of the least squares that close what is missing of each step's state (B,
        D), each sample's squares counting by the step's share (B,).
        """
        count = len(self.parameters)
        gram, slope = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        for weights, picture, share in zip(self.weights, missing, shares):
            weights = _padded(weights, count, self.basis)
            weighed = weights * share[:, None, None]
            gram += torch.einsum("bpr,bqr->pq", weighed @ self.basis.products, weights)
            slope += torch.einsum("bpr,br->p", weighed, self.basis.onto(picture))
        return gram, slope


def tangents(
    solver: LinearSolver,
    path: Path,
    ask: Ask,
    x: torch.Tensor,
    trace: Sequence[Step],
    step: float,
    rank: int = RANK,
) -> Tangents:
    """The `Tangents` of the run from x that `linear.follow` yields as `trace`.

    step: the size of a perturbation, as a share of the state that it is added to.
    """
    basis, names = Basis(), []
    start = basis.add(x)
    states = [x, *(state.x for state in trace)]
    position = {start: 1.0}  # the state, by places of the basis
    changes = x.new_zeros(len(x), 0, 1, dtype=torch.float64, device="cpu")  # of the state
    held: list[int] = []  # places of the predictions so far, this step's first
    held_changes: list[torch.Tensor] = []
    every = []
    for i, (sigma, asked, row) in enumerate(zip(solver.sigmas, solver.asked, solver.rows)):
        if asked:
            made = trace[i].predictions
            answers = _answers(basis, changes, states[i], ask, sigma, asked, made, step, rank)
            held = [*map(basis.add, made), *held]
            if i:  # the first level is where the trajectories begin
                shift = max(step, LEVEL_STEP)  # towards the picture, where there always is room
                there = ask(states[i], shifted(path, sigma, shift), asked)
                slopes = [basis.add((new - old) / shift) for new, old in zip(there, made)]
                answers = [_with_rows(change, [{at: 1.0}], basis) for change, at in zip(answers, slopes)]
                names.append(Parameter(i, None))
            held_changes = [*answers, *held_changes]
        moved = row[0] * _padded(changes, len(names), basis)
        for weight, change in zip(row[1:], held_changes):
            moved += weight * _padded(change, len(names), basis)
        terms = [position, *({place: 1.0} for place in held)]
        changes = _with_rows(moved, terms, basis)
        every.append(changes)
        names += [Parameter(i, place) for place in range(len(terms))]
        position = {place: row[0] * weight for place, weight in position.items()}
        for weight, place in zip(row[1:], held):
            position[place] = position.get(place, 0.0) + weight
    return Tangents(names, basis, every)


def _answers(basis, changes, x, ask, sigma, asked, made, step, rank):
    """For each prediction `made` of the states x how it changes (B, P, R) where those do by `changes`, from
    perturbed copies in their main directions.
    """
    changes = _padded(changes, changes.shape[1], basis)
    if not changes.shape[1]:
        return [changes] * len(made)
    directions = _main_directions(changes, basis.products, rank)
    shares = changes @ basis.products @ directions.mT  # (B, P, Q)
    far = step * x.flatten(1).norm(dim=1, keepdim=True)
    pictures = [basis.combined(direction) for direction in directions.unbind(1)]
    many = torch.cat([x + (far * picture).reshape(x.shape) for picture in pictures])
    out = []
    for answer, here in zip(ask(many, sigma, asked), made):
        places = [basis.add((part - here).flatten(1) / far) for part in answer.split(len(x))]
        change = shares.new_zeros(*shares.shape[:2], len(basis.pictures))
        change[:, :, places] = shares
        out.append(change)
    return out


def _main_directions(changes, products, rank):
    """(B, Q, R) unit vectors on the basis: the main directions of each sample's changes (B, P, R), every
    parameter's brought to one size over all samples.
    """
    if not changes.shape[1]:
        return changes
    size = (changes @ products * changes).sum(2).mean(0).clamp_min(1e-30).sqrt()
    scaled = changes / size[:, None]
    values, vectors = torch.linalg.eigh(scaled @ products @ scaled.mT)
    shares = (values.clamp_min(0) / values.sum(1, keepdim=True).clamp_min(1e-30)).mean(0).flip(0)
    count = min(rank, max(1, int((shares > SMALLEST).sum())))
    values, vectors = values[:, -count:], vectors[:, :, -count:]
    real = values > 1e-9 * values.amax(1, keepdim=True)
    inverse = torch.where(real, values.clamp_min(1e-30).rsqrt(), 0.0)
    return (vectors.mT @ scaled) * inverse[:, :, None]


def _padded(changes, parameters, basis):
    """(B, P, R) with zeros up to that many parameters and all places of the basis."""
    return torch.nn.functional.pad(
        changes, (0, len(basis.pictures) - changes.shape[2], 0, parameters - changes.shape[1])
    )


def _with_rows(changes, rows, basis):
    """(B, P, R) with more parameters, each a {place: weight} that is the same for all samples."""
    count = changes.shape[1]
    out = _padded(changes, count + len(rows), basis)
    for number, row in enumerate(rows, count):
        for place, weight in row.items():
            out[:, number, place] = weight
    return out
