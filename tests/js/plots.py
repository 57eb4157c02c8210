"""Runs the pack's scripts in Node: `node(tmp_path, script, data)`; skips with one line where there is no
Node.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

JS = Path(__file__).parent.parent.parent / "js"
HEAD = "import {{ readFileSync }} from 'node:fs';\nconst data = JSON.parse(readFileSync(0, 'utf8'));\n"


def node(folder, script, data):
    """What the script's `answer(value)` said; it finds `data`, and the modules at "./js/..."."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js: node is not on the PATH")
    shutil.copytree(JS, folder / "js", ignore=shutil.ignore_patterns("docs"), dirs_exist_ok=True)
    # the browser needs none: the script tag says it
    (folder / "package.json").write_text('{"type": "module"}')
    # numbers that JSON lacks are told as text
    tail = (
        "\nfunction answer(value) {\n"
        "  const plain = (_, v) => typeof v === 'number' && !Number.isFinite(v) ? String(v) : v;\n"
        "  process.stdout.write(JSON.stringify(value, plain));\n}\n"
    )
    (folder / "script.js").write_text(HEAD.format() + script + tail)
    done = subprocess.run(
        ["node", "script.js"], cwd=folder, input=json.dumps(data), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
