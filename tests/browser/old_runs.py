"""Runs that are over, as `training.run.job` would have left them, for a panel to show."""

import json

from fewstep.training.run import job, runs
from fewstep.training.run.config import DistilConfig
from fewstep.training.trajectories import folders


def write_runs(root, count, **changes):
    """That many below `root`, "old-0" the oldest; with changes of their status."""
    for i in range(count):
        config, about = DistilConfig(seed=i), {"base": "made for a test"}
        folder = root / job.folder_name(config, about)
        folder.mkdir(parents=True)
        began = 1_700_000_000 + 600 * i
        status = {
            "state": "finished",
            "done": 600,
            "total": 600,
            "skipped": 0,
            "method": "phased",
            "steps": 4,
            "loss": 0.03,
            "fidelity": 0.2,
            "best": 0.19,
            "saved_at": began + 500,
            "about": about,
            "notes": {
                "started_at": began,
                "name": f"old-{i}",
                "model": "dream.safetensors",
                "lora": f"old-{i}.safetensors",
            },
        }
        (folder / folders.MANIFEST).write_text(json.dumps(job.manifest(config, about)))
        (folder / job.STATUS).write_text(json.dumps({**status, **changes}))
    assert folders.is_ours(folder) and runs.summary(folder)["state"] == "finished"
