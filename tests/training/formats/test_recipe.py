"""The recipe as a document: what is written is read again, and what is wrong is refused by the name of its
field.
"""

import json
import math

import pytest
from fewstep.diffusion.paths import FLOW
from fewstep.diffusion.solvers.linear import classical
from fewstep.training.formats.files import load_recipe, save_recipe
from fewstep.training.formats.recipe import Recipe

SIGMAS = (1.0, 0.7, 0.3, 0.0)
ROWS = classical(SIGMAS, FLOW).rows
PLAIN = Recipe(
    method="consistency",
    path="flow",
    sigmas=SIGMAS,
    churn=math.inf,
    base="abc",
    trained={"updates": 3, "of": ["a", 1.5]},
)
FITTED = Recipe(
    method="fitted",
    path="flow",
    sigmas=SIGMAS,
    coefficients=ROWS,
    cfg=2.5,
    shift=3.0,
    order=2,
    errors={"held_out": 0.01, "classical": 0.02},
)


def changed(**change):
    return json.dumps({**json.loads(FITTED.to_json()), **change})


@pytest.mark.parametrize("recipe", [PLAIN, FITTED], ids=["plain", "fitted"])
def test_round_trip(recipe, tmp_path):
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe and again.to_json() == recipe.to_json()
    assert load_recipe(save_recipe(tmp_path / "r.json", recipe)) == recipe
    assert again.solver == (recipe.solver if recipe.coefficients else None)
    assert json.loads(recipe.to_json())["version"] == 2


def test_a_part_of_the_way_has_its_own_ends_and_a_version_of_its_own():
    part = Recipe(method="phased", path="flow", sigmas=(1.0, 0.8, 0.6), to_percent=0.5)
    written = json.loads(part.to_json())
    assert Recipe.from_json(part.to_json()) == part and written["version"] == 3
    assert "to_percent" not in json.loads(PLAIN.to_json())
    with pytest.raises(ValueError, match="sigmas must end above 0 where to_percent is 0.5"):
        Recipe.from_json(json.dumps({**written, "sigmas": [1.0, 0.5, 0.0]}))
    with pytest.raises(ValueError, match="from_percent must be below to_percent"):
        Recipe.from_json(json.dumps({**written, "from_percent": 0.5}))


APART = Recipe(
    method="fitted",
    path="flow",
    sigmas=SIGMAS,
    coefficients=((0.5, 0.7, -0.2), (0.4, 0.6, 0.1, -0.1), (0.0, 1.0, 0.2, -0.2)),
    asks=("cu", "c", ""),
    fresh=(0.0, 0.125, 0.0),
    cfg=4.0,
)


def test_calls_apart_and_fresh_noise_have_a_version_of_their_own(tmp_path):
    written = json.loads(APART.to_json())
    assert written["version"] == 4 and written["asks"] == ["cu", "c", ""] and written["to_percent"] == 1
    again = load_recipe(save_recipe(tmp_path / "r.json", APART))
    assert again == APART and again.solver == APART.solver and (again.calls, again.steps) == (3, 3)
    assert (FITTED.calls, PLAIN.calls) == (6, 3)  # guidance takes two
    plain = {"asks": ["g", "g", "g"], "fresh": [0, 0, 0]}
    assert Recipe.from_json(changed(**plain, version=4, from_percent=0.0, to_percent=1.0)) == FITTED
    with pytest.raises(ValueError, match="missing or unknown: asks, fresh"):
        Recipe.from_json(changed(version=4, from_percent=0.0, to_percent=1.0))


@pytest.mark.parametrize(
    "change, why",
    [
        ({"asks": "cu"}, "recipe asks must be a list of texts, got 'cu'"),
        ({"asks": ["cu", "c"]}, "asks must have an entry for each of 3 steps, got 2"),
        ({"asks": ["cc", "c", ""]}, "asks of step 1 must be letters of g, c, u, each at most once.*'cc'"),
        ({"asks": ["cu", "x", ""]}, "asks of step 2 must be letters"),
        ({"asks": ["cu", 1, ""]}, "asks of step 2 must be letters"),
        ({"asks": ["", "c", "u"]}, "in the first step at least one, got ''"),
        ({"asks": ["c", "c", "c"]}, "step 1 must be 2 to 2 numbers"),
        ({"fresh": [0, -1, 0]}, "fresh must be numbers of 0 or more"),
        ({"fresh": [0, "1", 0]}, "recipe fresh must be a list of numbers, got '1'"),
        ({"fresh": [1.0]}, "fresh must have an entry for each of 3 steps, got 1"),
        ({"coefficients": []}, "recipe asks must be empty where there are no coefficients"),
    ],
    ids=str,
)
def test_a_damaged_solver_is_refused(change, why):
    with pytest.raises(ValueError, match=why):
        Recipe.from_json(json.dumps({**json.loads(APART.to_json()), **change}))


def test_whole_numbers_serve_as_numbers():
    recipe = Recipe.from_json(
        changed(cfg=2, shift=1, churn=0, errors={"held_out": 0}, sigmas=[1, 0.7, 0.3, 0])
    )
    assert recipe.sigmas == SIGMAS and recipe.cfg == 2


def test_version_1_is_read():
    old = {
        k: v for k, v in json.loads(PLAIN.to_json()).items() if k not in ("coefficients", "shift", "errors")
    }
    assert Recipe.from_json(json.dumps({**old, "version": 1})) == PLAIN
    with pytest.raises(ValueError, match="missing or unknown: coefficients, errors, shift"):
        Recipe.from_json(json.dumps({**old, "version": 2}))


@pytest.mark.parametrize(
    "version, fields",
    [
        (1, {"coefficients": []}),
        (1, {"asks": [], "fresh": []}),
        (2, {"asks": ["cu", "c", ""]}),
        (2, {"to_percent": 1.0}),
        (3, {"fresh": [0, 0, 0]}),
    ],
    ids=str,
)
def test_what_a_version_has_not_is_refused(version, fields):
    value = json.loads(PLAIN.to_json())  # of version 2
    if version == 1:
        value = {k: v for k, v in value.items() if k not in ("coefficients", "shift", "errors")}
    if version == 3:
        value |= {"from_percent": 0.0, "to_percent": 1.0}
    why = f"is of version {version}, which must have no {', '.join(sorted(fields))}: version"
    with pytest.raises(ValueError, match=why):
        Recipe.from_json(json.dumps({**value, **fields, "version": version}))


@pytest.mark.parametrize("version", [99, 0, -1, "2", True, None, 2.0, [2]])
def test_other_versions_are_refused(version):
    with pytest.raises(
        ValueError, match="must be of version 4 or version 3 or version 2 or version 1, got .* Update Fewstep"
    ):
        Recipe.from_json(changed(version=version))


NAN, INF = float("nan"), float("inf")


def rows(place, value):
    """The rows with one number changed."""
    return [[value if (i, j) == place else v for j, v in enumerate(row)] for i, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    "change, why",
    [
        ({"sigmas": [1, 0.3, 0.7, 0]}, "recipe sigmas must descend"),
        ({"sigmas": [1, 0.7, 0.7, 0]}, "recipe sigmas must descend"),
        ({"sigmas": [1, 0.7, 0.3, 0.1]}, "recipe sigmas must end at 0"),
        ({"sigmas": [1, 0.7, 0.3, -0.1]}, "recipe sigmas must not be neg"),
        ({"sigmas": [2, 0.7, 0.3, 0]}, "recipe sigmas must start at 1"),
        ({"sigmas": []}, "recipe sigmas must hold at least two"),
        ({"sigmas": [0]}, "recipe sigmas"),
        ({"sigmas": "1, 0.5, 0"}, "recipe sigmas must be a list of numbers, got '1, 0.5, 0'"),
        ({"sigmas": ["1", "0"]}, "recipe sigmas must be a list of numbers, got '1'"),
        ({"sigmas": None}, "recipe sigmas must be a list"),
        ({"sigmas": {"a": 1}}, "recipe sigmas must be a list"),
        ({"sigmas": [[1, 0]]}, "recipe sigmas must be a list"),
        ({"sigmas": [True, 0]}, "recipe sigmas must be a list"),
        ({"sigmas": 1.0}, "recipe sigmas must be a list"),
        ({"sigmas": [10**400, 0]}, "recipe sigmas must be a list"),
        ({"sigmas": [1, None, 0]}, "recipe sigmas must be a list"),
        ({"coefficients": ROWS[:2]}, "recipe coefficients must .* row for each of 3 steps, got 2"),
        ({"coefficients": [*ROWS, ROWS[0]]}, "recipe coefficients must .* got 4"),
        ({"coefficients": [[0.5], *ROWS[1:]]}, "recipe coefficients must .* step 1 must be 2 to 2 numbers"),
        (
            {"coefficients": [[0.5, 0.5, 0.1], *ROWS[1:]]},
            "recipe coefficients .* step 1 must be 2 to 2 numbers .* got 3",
        ),
        (
            {"coefficients": rows((1, 1), "1")},
            "recipe coefficients must be rows of numbers, one a step, got '1'",
        ),
        ({"coefficients": rows((1, 1), True)}, "recipe coefficients must be rows"),
        ({"coefficients": [1, 2, 3]}, "recipe coefficients"),
        ({"coefficients": rows((1, 1), None)}, "recipe coefficients must be rows"),
        ({"coefficients": rows((2, 0), 10**400)}, "recipe coefficients"),
        ({"coefficients": {"a": 1}}, "recipe coefficients must be rows"),
        ({"coefficients": "rows"}, "recipe coefficients must be rows"),
        ({"coefficients": ["ab", "cd", "ef"]}, "recipe coefficients"),
        ({"coefficients": None}, "recipe coefficients must be rows"),
        ({"coefficients": {}}, "recipe coefficients must be rows"),
        ({"churn": 0.5}, "recipe churn must be 0 where there are coefficients"),
        ({"churn": "inf"}, "recipe churn must be 0 where"),
        ({"churn": -1, "coefficients": []}, "churn must be 0 or more"),
        ({"churn": "0.5", "coefficients": []}, "recipe churn must be a num"),
        ({"churn": None}, "recipe churn must be a number"),
        ({"churn": True}, "recipe churn must be a number"),
        ({"churn": [1]}, "recipe churn must be a number"),
        ({"cfg": "2"}, "recipe cfg must be a finite number, got '2'"),
        ({"cfg": None}, "recipe cfg"),
        ({"cfg": 10**400}, "recipe cfg"),
        ({"shift": 0}, "recipe shift must be above 0"),
        ({"shift": [1]}, "recipe shift must be a finite"),
        ({"order": 4}, "recipe order"),
        ({"order": "2"}, "recipe order must be 1, 2 or 3"),
        ({"order": True}, "recipe order"),
        ({"order": 1.0}, "recipe order"),
        ({"order": None}, "recipe order"),
        ({"order": []}, "order"),
        ({"path": "vp"}, "path must be one of"),
        ({"path": ["flow"]}, "recipe path must be text"),
        ({"path": None}, "recipe path must be"),
        ({"method": 3}, "recipe method must be text, got 3"),
        ({"base": None}, "recipe base must be text"),
        ({"errors": [0.1]}, "recipe errors must be an object"),
        ({"errors": {"held_out": "low"}}, "recipe errors held_out must be a finite"),
        ({"trained": "long"}, "recipe trained must be an object"),
        ({"surprise": 1}, "missing or unknown: surprise"),
    ],
    ids=str,
)
def test_a_wrong_field_is_refused_by_its_name(change, why):
    with pytest.raises(ValueError, match=why):
        Recipe.from_json(changed(**change))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(
    "field", ["sigmas", "coefficients", "churn", "cfg", "shift", "order", "errors", "trained"]
)
def test_no_field_takes_what_is_no_number(field, number):
    value = {
        "sigmas": [1, "X", 0.3, 0],
        "coefficients": rows((1, 1), "X"),
        "errors": {"held_out": "X"},
        "trained": {"a": [{"b": "X"}]},
    }.get(field, "X")
    text = changed(**{field: value})
    assert text.count('"X"') == 1
    with pytest.raises(ValueError, match=f"{field}|The recipe must hold finite numbers, got {number}"):
        Recipe.from_json(text.replace('"X"', number))


@pytest.mark.parametrize("field", ["sigmas", "churn", "cfg", "shift", "trained", "errors", "coefficients"])
def test_what_could_not_be_read_again_is_not_made(field):
    value = {
        "sigmas": (1, NAN, 0),
        "coefficients": rows((0, 0), INF),
        "errors": {"a": NAN},
        "trained": {"a": {"b": [INF]}},
    }
    fields = dict(method="fitted", path="flow", sigmas=SIGMAS, coefficients=ROWS)
    with pytest.raises(ValueError, match=field):
        Recipe(**{**fields, field: value.get(field, NAN)})


def test_what_is_no_document_is_refused(tmp_path):
    for text in ("", "{", "[1]", "{}", "null", "3", '"recipe"', "[" * 100_000):
        with pytest.raises(ValueError, match="recipe must be"):
            Recipe.from_json(text)
    (tmp_path / "picture.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match="picture.json: "):
        load_recipe(tmp_path / "picture.json")
    with pytest.raises(ValueError, match="none.json: "):
        load_recipe(tmp_path / "none.json")
