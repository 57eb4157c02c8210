"""Draws what the runs of `distil.py` make of the same noises: the first SHOWN of those that judge them."""

from pathlib import Path

from distil_run import KEY, SHOWN, drawn_at, pictures_at
from distil_table import MAIN, RECIPE, TEACHER, best_rates, of
from fewstep.training.formats.files import read_tensors
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.reports import pictures

STEPS = (1, 2, 4)
SCALE = 2


def draw(rows: list[dict], kind: str, asked: float, folder: Path, file: Path) -> None:
    """Draw the teacher, `distil_table.MAIN` and the recipe's best rate by the distance, of seed 0 and of that
    length, in 1, 2 and 4 steps. Raises SystemExit naming the row whose pictures are not there.
    """
    tried = of(rows, teacher=kind, asked=asked, seed=0, device="cpu")
    teacher = of(rows, teacher=kind, method=TEACHER)[0]
    columns = {"teacher\n50 steps": read_tensors(pictures_at(teacher, folder))[0]["reference"][:SHOWN]}
    recipe = of(tried, method=RECIPE)
    shown = [row for name in MAIN for row in of(tried, method=name, pictures="teacher", steps=4)]
    for row in [*shown, *of(recipe, lr=best_rates(recipe)[-1])]:
        if not drawn_at(row, folder).exists():
            raise SystemExit(
                f"--picture: no pictures are kept of {[row[name] for name in KEY]}. Run it again."
            )
        drawn = read_tensors(drawn_at(row, folder))[0]
        for steps in STEPS:
            columns[f"{row['method']}\n{steps} step{'s' * (steps > 1)}"] = drawn[str(steps)]
    model = DemoTeacher(kind)
    labels = [model.labels[number % model.conditions] for number in range(SHOWN)]
    title = f"{kind} teacher, runs of {asked:g} s: the same noise in every row"
    pictures.grid(columns, labels, title, scale=SCALE).save(file)
