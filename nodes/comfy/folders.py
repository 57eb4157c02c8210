"""Where Fewstep keeps things: in the host's user directory and its output directory, nowhere else."""

from pathlib import Path

import folder_paths


def of_user(kind: str) -> Path:
    """The folder of that kind in the user directory: "trajectories" (of fits and runs alike) or "runs"."""
    return Path(folder_paths.get_user_directory()) / "fewstep" / kind


def of_models(kind: str) -> Path:
    """Where a new file of that kind of model goes: of several folders the default one, which the host keeps
    first (`is_default` of extra_model_paths.yaml).
    """
    return Path(folder_paths.get_folder_paths(kind)[0])


def written_at(kind: str, name: str | None) -> int | str:
    """When a model's file was written, for the fingerprint of a node that reads it: the host would take what
    the node gave before, also where another file has that name by now. "" where there is none.
    """
    path = folder_paths.get_full_path(kind, name) if name else None
    return Path(path).stat().st_mtime_ns if path else ""


def of_output(name: str) -> Path:
    """The folder of that name in the output directory."""
    return Path(folder_paths.get_output_directory()) / name
