"""What training costs on this card: one command, 8 minutes at most, random weights, nothing downloaded.

    python benchmarks/card.py [--json FILE] [--tiny]

For SD1.5 at 512 x 512, SDXL at 1024 x 1024 and a model of Flux's shape (its width, a quarter of its depth,
fp8): samples of the guided teacher and of training a second, the measured peak beside the planned one,
weights resident and streamed, the slope of the gradient along itself (1 where it is right), and the LCM-LoRA
recipe of the diffusers scripts beside them, of the same size, batch and rank (`card_recipe` says how it is
translated for Flux). ComfyUI is looked for in COMFYUI_PATH; the recipe needs diffusers and peft. Each section
is a process of its own with a time limit: one that fails or is too slow is a line of the table. --tiny runs
the same sections on tiny models, in a minute or two on a CPU.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

WHOLE = 460  # seconds of the run; the rest is for starting and ending
TINY = 300  # seconds of a section on tiny models, whose machine may be busy
SECTIONS = [  # model, way, seconds at most
    ("SD1.5", "resident", 75),
    ("SD1.5", "LCM-LoRA", 60),
    ("SDXL", "resident", 90),
    ("SDXL", "LCM-LoRA", 75),
    ("SDXL", "streamed", 90),
    ("Flux-shaped", "resident", 90),
    ("Flux-shaped", "LCM-LoRA", 75),
    ("Flux-shaped", "streamed", 90),
    ("SD1.5", "streamed", 60),
]
SCRIPT = Path(__file__).with_name("card_sections.py")


def section(model: str, way: str, limit: float, tiny: bool) -> dict:
    """The row of one section; `error` says why it has no figures."""
    began, row = time.perf_counter(), {"model": model, "way": way}
    command = [sys.executable, str(SCRIPT), model, way, *(["--tiny"] if tiny else [])]
    if limit <= 5:
        return {**row, "error": "no time was left"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {**row, "seconds": limit, "error": f"took more than {limit:.0f} s"}
    row["seconds"] = time.perf_counter() - began
    return {**row, **result(done.stdout, done.stderr, done.returncode)}


def result(output: str, errors: str, code: int) -> dict:
    """What a section printed, or why it printed nothing."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if code == 0 and lines:
        return json.loads(lines[-1])
    said = [line.strip() for line in errors.splitlines() if line.strip()]
    return {"error": said[-1][:200] if said else f"ended with {code}"}


def about() -> dict:
    """The machine."""
    found = {"torch": torch.__version__, "python": platform.python_version(), "device": "cpu"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
    return found


HEAD = (
    f"{'model':12}{'way':>10}{'teacher/s':>11}{'training/s':>11}{'planned':>9}{'peak':>9} GiB"
    f"{'samples':>8}{'graph':>7}{'rank':>5}{'streamed':>9}{'slope':>8}{'s':>5}"
)


def line_of(row: dict) -> str:
    """A row in words."""
    head = f"{row['model']:12}{row['way']:>10}"
    if "error" in row:
        return f"{head}  {row['error']}"

    def shown(key, form, scale=1):
        value = row.get(key)
        width = int(form.split(".")[0])
        return f"{value / scale:{form}}" if isinstance(value, (int, float)) else f"{'-':>{width}}"

    graph = "blocks" if row["checkpointing"] else "whole"
    return (
        f"{head}{shown('teacher_samples_per_second', '11.2f')}{shown('samples_per_second', '11.2f')}"
        f"{shown('predicted_peak', '9.2f', 2**30)}{shown('peak', '9.2f', 2**30)}    "
        f"{shown('micro_batch', '8.0f')}{graph:>7}{shown('rank', '5.0f')}{shown('streamed_layers', '9.0f')}"
        f"{shown('slope', '8.4f')}{shown('seconds', '5.0f')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--tiny", action="store_true", help="tiny models, also without a card")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA card here. --tiny shows that the sections run.")
    end, rows, machine = time.perf_counter() + WHOLE, [], about()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(HEAD, flush=True)
    for model, way, limit in SECTIONS:
        limit = TINY if args.tiny else min(limit, end - time.perf_counter())
        rows.append(section(model, way, limit, args.tiny))
        print(line_of(rows[-1]), flush=True)
        if args.json:  # at once: a run that is cut off leaves what it has
            found = {"about": machine, "rows": rows}
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
