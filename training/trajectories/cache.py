"""The teacher's accurate trajectories on disk: worked out once, resumed after a kill at any point.

Runs that ask alike share them.

    cache = TrajectoryCache(folder, spec)
    for share in cache.build(teacher, count): ...       # of the work; what is there already is not redone
    states, predictions = cache.read(count)             # (count, kept, ...), (count, kept - 1, ...)

A cache is a folder named by a hash of its spec: `manifest.json` with the spec, and shards
`00000.safetensors`, ... of `spec.shard` trajectories each. Starting noise is not stored: it is drawn from
(seed, number). Shards do not depend on each other, are written whole or not at all and carry a checksum, so
that what was begun, damaged or asked for in larger number is completed and nothing else. Two runs at once
write the same bytes, and neither removes what the other has open to make room (`folders`). The ends of a
trajectory are a reflow pair; consistency distillation and solver fitting learn from the states in between.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ...diffusion import samplers
from ...diffusion.faults import BadFile, BadValue
from ...diffusion.frozen import normalise
from ...diffusion.paths import check_sigmas, path
from ..formats.files import check_folder, write_json
from ..models.denoiser import Teacher, for_sampler
from ..ranks.ranks import ALONE, Ranks
from . import folders
from .folders import MANIFEST
from .noises import noises, start
from .recorder import recorded
from .shards import read_shard, write_shard

VERSION = 1
LIMIT = 8 << 30  # bytes of all caches in a folder
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """What makes two caches the same.

    model         fingerprint of the base model
    patches       of what is patched into it (LoRAs and the like), "" for nothing
    conditioning  of the prompts, and `conditions`, how many: trajectory n is drawn for prompt n % conditions
    guidance      CFG as text, or what else guides
    path, shape   of the model, and of one sample
    sigmas, kept  the teacher's step grid, and which of its levels are stored, the first (noise) and the last
                  (image, or what is left to do for others) among them
    order, corrector    its solver
    noise_scale   what unit noise is multiplied by beside sigma
    seed          of the starting noises
    dtype         of what is stored; shard: trajectories of one file, which are also solved in one batch
    predictions   whether the predictions are stored beside the states
    """

    model: str
    patches: str
    conditioning: str
    conditions: int
    guidance: str
    path: str
    shape: tuple
    sigmas: tuple
    kept: tuple
    order: int = 2
    corrector: bool = True
    noise_scale: float = 1.0
    seed: int = 0
    dtype: str = "float32"
    shard: int = 8
    predictions: bool = True

    def __post_init__(self):
        grid = check_sigmas(self.sigmas, path(self.path))
        samplers.check_order(self.order)
        normalise(
            self,
            sigmas=tuple(grid.tolist()),
            shape=tuple(map(int, self.shape)),
            kept=tuple(map(int, self.kept)),
            noise_scale=float(self.noise_scale),
        )
        rising = all(b > a for a, b in zip(self.kept, self.kept[1:]))
        if len(self.kept) < 2 or self.kept[0] != 0 or self.kept[-1] != len(grid) - 1 or not rising:
            raise BadValue(
                "kept must rise from 0 to the last of {count} levels, got {got}.",
                count=len(grid),
                got=self.kept,
            )
        least = {"conditions": self.conditions, "shard": self.shard, "shape": min(self.shape, default=1)}
        for name, value in least.items():
            if value < 1:
                raise BadValue("{name} must be 1 or more, got {got!r}.", name=name, got=getattr(self, name))
        if not 0 < self.noise_scale < math.inf:
            raise BadValue("noise_scale must be above 0, got {got}.", got=self.noise_scale)
        if self.dtype not in DTYPES:
            raise BadValue("dtype must be one of {dtypes}, got {got!r}.", dtypes=list(DTYPES), got=self.dtype)

    @property
    def key(self) -> str:
        """The name of the cache's folder."""
        return folders.key(VERSION, dataclasses.asdict(self))

    @property
    def bytes_each(self) -> int:
        """Size of a trajectory: its kept states but the starting noise, predictions at all but the last."""
        stored = (1 + self.predictions) * (len(self.kept) - 1)
        return stored * math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def members(self, number: int) -> range:
        """The trajectories of that shard."""
        return range(number * self.shard, (number + 1) * self.shard)


class TrajectoryCache:
    """The cache of a spec below `folder`.

    `limit` bounds the bytes of all caches there; the longest unused give way. starts: unit noise (N, ...) of
    whole shards to start from (`noises.as_noise`), which the spec must tell from others, in place of its own.
    """

    def __init__(
        self, folder: str | Path, spec: CacheSpec, limit: int = LIMIT, starts: torch.Tensor | None = None
    ):
        self.root, self.spec, self.limit, self.starts = Path(folder), spec, limit, starts
        self.folder, self._held = self.root / spec.key, None

    def bytes(self, count: int) -> int:
        """Size on disk of `count` trajectories, without the few kB of headers."""
        return self._shards(count) * self.spec.shard * self.spec.bytes_each

    @torch.no_grad()
    def build(self, teacher: Teacher, count: int, ranks: Ranks = ALONE) -> Iterator[float]:
        """Work out what is missing of the first `count` trajectories; yields the share of the work that is
        done, after every step.

        ranks: those that share the work by shards. Where they don't see the same folder, each has all of them
        in its own at the end.
        teacher(x, sigma, condition) -> x0, guided: x (B, *shape), sigma (B,) float64, condition (B,) int64.
        Raises, before any call of the teacher, ValueError when the size is above the limit or the folder
        holds the manifest of something else, and OSError when the disk can't take it; later ValueError when a
        trajectory is not finite.
        """
        shards = self._shards(count)
        self._open(count)
        there, damaged = yield from _looked_at(self, shards)
        missing = [n for n, known in enumerate(zip(*ranks.all(there))) if not any(known)]
        done = shards - len(missing)
        for number in missing[ranks.rank :: ranks.world]:
            shares = self._solve(teacher, number)
            if getattr(teacher, "each_path", None) is not None:
                teacher.each_path(functools.partial(collections.deque, shares, maxlen=0))
            for share in shares:
                ranks.check()
                yield min(1.0, (done + ranks.world * share) / shards)
            done = min(shards, done + ranks.world)
            damaged.discard(number)
            yield done / shards
        yield from _completed(self, shards, damaged, ranks)

    def read(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32 (states (count, kept, *shape), predictions (count, kept - 1, *shape)).

        The predictions are None where they are not stored. Raises ValueError naming the shard that is missing
        or damaged.
        """
        states, predictions = [], []
        self._held = self._held or folders.lock(self.folder)
        for number in range(self._shards(count)):
            loaded = self._load(number)
            if loaded is None:
                raise BadValue(
                    "trajectory cache must be whole, {file} is missing or damaged. Run again: it will be "
                    "rebuilt.",
                    file=self._file(number),
                )
            states.append(torch.cat([self._start(number)[:, None], loaded["states"].float()], 1))
            predictions += [loaded["predictions"].float()] if self.spec.predictions else []
        return torch.cat(states)[:count], torch.cat(predictions)[:count] if predictions else None

    def noise(self, count: int) -> torch.Tensor:
        """The unit noise that the first `count` trajectories start from, (count, *shape)."""
        return _noise_of(self, range(count))

    def conditions(self, count: int) -> torch.Tensor:
        """Which prompt each of the first `count` trajectories was drawn for, (count,)."""
        return torch.arange(count) % self.spec.conditions

    # ---- one shard -----------------------------------------------------------------------------

    def _shards(self, count):
        if count < 1:
            raise BadValue("trajectories must be 1 or more, got {got}.", got=count)
        return -(-count // self.spec.shard)

    def _file(self, number):
        return self.folder / f"{number:05d}.safetensors"

    def _start(self, number):
        """The shard's states at the first level: noise, from each trajectory's own seed."""
        spec = self.spec
        noise = _noise_of(self, spec.members(number))
        return start(noise, spec.sigmas, path(spec.path), spec.noise_scale)

    def _solve(self, teacher, number):
        """Solve and write a shard; yields the share done."""
        spec = self.spec
        condition = torch.tensor(spec.members(number)) % spec.conditions
        states, predictions, dtype = [], [], DTYPES[spec.dtype]
        run = samplers.sample(
            for_sampler(teacher, condition, dtype=torch.float64),
            self._start(number),
            spec.sigmas,
            path(spec.path),
            order=spec.order,
            corrector=spec.corrector,
        )
        for state in recorded(run, spec.kept, states, predictions):
            for latest in (*states[-1:], *predictions[-1:]):
                if not latest.to(dtype).isfinite().all():
                    raise _not_finite(state.sigma, spec.dtype)
            yield (state.index + 1) / len(spec.sigmas)
        parts = {"states": states, "predictions": predictions} if spec.predictions else {"states": states}
        tensors = {name: torch.stack(p, 1).to(dtype).cpu().contiguous() for name, p in parts.items()}
        write_shard(self._file(number), tensors, f"{spec.key} {number}")

    def _load(self, number):
        """The tensors of a shard, or None when it is missing or damaged."""
        return read_shard(self._file(number), f"{self.spec.key} {number}")

    # ---- the folder ----------------------------------------------------------------------------

    def _open(self, count):
        """Make the folder and its manifest, or check that it is ours; make room."""
        size = self.bytes(count)
        if size > self.limit:
            raise BadValue(
                "trajectories must fit into {limit:.2f} GiB, {count} of this size take {size:.2f}. Ask for "
                "fewer, or fewer kept levels, or store them in float16.",
                limit=self.limit / 2**30,
                count=count,
                size=size / 2**30,
            )
        manifest = self.folder / MANIFEST
        spec = json.loads(json.dumps(dataclasses.asdict(self.spec)))
        wanted = {"version": VERSION, "key": self.spec.key, "spec": spec}
        if manifest.exists():
            _check_manifest(manifest, wanted)
        self._hold()  # before the check, whose trial another process would tidy away
        check_folder(self.folder)
        if manifest.exists():
            with contextlib.suppress(OSError):  # it only tells when the cache was used
                os.utime(manifest)
        else:
            write_json(manifest, wanted)
        there = folders.size(self.folder)
        folders.make_room(self.root, self.limit, self.folder, max(size, there))
        _check_free(self.folder, size - there, count)

    def close(self) -> None:
        """Let others remove it for room; reading or building holds it again."""
        if self._held:
            self._held.close()
            self._held = None

    def _hold(self):
        """Make the folder, and mark it as in use for as long as this object or its process lives."""
        self.close()
        self._held = folders.made(self.folder)


def _looked_at(cache, shards):
    """(whether each shard is there, which are damaged), after the share of the work that is done by that."""
    there = []
    for number in range(shards):
        there.append(cache._load(number) is not None)
        if there[-1]:
            yield sum(there) / shards
    return there, {n for n in range(shards) if not there[n] and cache._file(n).exists()}


def _completed(cache, shards, damaged, ranks):
    """Wait for the other ranks, and bring what they have into a folder that they don't share."""
    for _ in ranks.all_come():
        yield 1.0
    there = [number not in damaged and cache._file(number).exists() for number in range(shards)]
    for number, have in enumerate(zip(*ranks.all(there))):
        if not all(have) and any(have):
            owner = have.index(True)
            tensors = ranks.tensors_of(owner, cache._load(number) if ranks.rank == owner else None)
            if tensors is not None and not have[ranks.rank]:
                write_shard(cache._file(number), tensors, f"{cache.spec.key} {number}")


def _noise_of(cache, numbers):
    """The unit noise that those trajectories start from."""
    if cache.starts is None:
        return noises(cache.spec.seed, numbers, cache.spec.shape)
    return cache.starts[numbers.start : numbers.stop]


def _check_free(folder, size, count):
    """Raise OSError where the disk has less than that free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise BadFile(
            "{folder} must have {size:.2f} GiB free for {count} trajectories, got {got:.2f}. Free some "
            "space, or ask for fewer.",
            folder=folder,
            size=size / 2**30,
            count=count,
            got=free / 2**30,
        )


def _not_finite(sigma, dtype):
    if dtype == "float16":
        return BadValue(
            "The teacher's trajectories must be finite, and at sigma {sigma:g} one is not. Check the model "
            "at these settings with an ordinary sampler, or store them in float32.",
            sigma=sigma,
        )
    return BadValue(
        "The teacher's trajectories must be finite, and at sigma {sigma:g} one is not. Check the model at "
        "these settings with an ordinary sampler.",
        sigma=sigma,
    )


def _check_manifest(file, wanted):
    """Raise ValueError when a manifest is not the one that is wanted, naming the first field that differs."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        spec = dict(found["spec"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadValue(
            "{file} must be the manifest of a trajectory cache, and can't be read ({error}). Delete its "
            "folder.",
            file=file,
            error=error,
        ) from error
    if found.get("version") != VERSION:
        raise BadValue(
            "{file} must be of version {version}, got {got}. Delete its folder.",
            file=file,
            version=VERSION,
            got=found.get("version"),
        )
    if found != wanted:
        odd = next((k for k, v in wanted["spec"].items() if spec.get(k) != v), "key")
        raise BadValue(
            "{file} must belong to this run, its {field} is {got!r} and not {wanted!r}. Delete its folder.",
            file=file,
            field=odd,
            got=spec.get(odd, found.get(odd)),
            wanted=wanted["spec"].get(odd, wanted.get(odd)),
        )
