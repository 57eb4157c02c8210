"""What Windows refuses: to replace or remove a file that somebody has mapped or open."""

import os
from pathlib import Path


class Windows:
    """held: files that others hold; beside them, whatever this process has mapped into memory."""

    def __init__(self, monkeypatch):
        self.held, self.refused = set(), []
        for name in ("replace", "unlink", "remove"):
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name)))
        monkeypatch.setattr("fewstep.training.formats.files.time.sleep", lambda seconds: None)

    def hold(self, path):
        self.held.add(Path(path).resolve())

    def is_held(self, path):
        path = Path(path).resolve()
        mapped = Path("/proc/self/maps").read_text().splitlines()
        return path in self.held or any(line.endswith(f" {path}") for line in mapped)

    def _guarded(self, real):
        def run(*paths, **options):
            for path in paths:
                if self.is_held(path):
                    self.refused.append(Path(path).name)
                    error = PermissionError(13, "The file is used by another process", str(path))
                    error.winerror = 1224 if real.__name__ == "replace" else 32
                    raise error
            return real(*paths, **options)

        return run
