"""The panel's curves: thinned without losing a peak, the same however the points came, and quick at 100,000
points.
"""

import random

import pytest
from fewstep.tests.js.plots import node

COLUMNS = 240
CURVE = """
import { Curve, reach } from "./js/charts/curve.js";
import { axis, ticks } from "./js/charts/scale.js";
import { drawCurves, lookUp, plotArea } from "./js/panel/curves.js";
const told = (curve) => ({ length: curve.length, low: curve.low, high: curve.high,
  lows: [...curve.lows], highs: [...curve.highs], sums: [...curve.sums], counts: [...curve.counts] });
const filled = (points, to, columns) => {
  const curve = new Curve();
  curve.view(to, columns);
  curve.append(points);
  return curve;
};
"""


def walk(count, seed=0):
    draw = random.Random(seed)
    return [[u, draw.lognormvariate(-3 - u / count, 0.5)] for u in range(1, count + 1)]


@pytest.mark.parametrize("count, to", [(7, 600), (5000, 5000), (5000, 16384)])
def test_thinning_keeps_each_columns_lowest_and_highest(tmp_path, count, to):
    points = walk(count)
    found = node(tmp_path, CURVE + f"answer(told(filled(data, {to}, {COLUMNS})));", points)
    columns = {}
    for update, value in points:
        columns.setdefault(min(COLUMNS - 1, int(update / to * COLUMNS)), []).append(value)
    assert found["length"] == count and sum(found["counts"]) == count
    for column in range(COLUMNS):
        values = columns.get(column, [])
        assert found["counts"][column] == len(values)
        if values:
            assert (found["lows"][column], found["highs"][column]) == (min(values), max(values))
            assert found["sums"][column] == pytest.approx(sum(values))
    assert (found["low"], found["high"]) == (min(v for _, v in points), max(v for _, v in points))


def test_appending_is_equal_to_building_anew(tmp_path):
    script = (
        CURVE
        + """
      const curve = new Curve();
      for (let i = 0; i < data.length; i += 37) {
        curve.append(data.slice(i, i + 37));
        curve.view(reach(curve.last, 20000, false), 240);     // the view grows with the run
      }
      const kept = new Curve();
      kept.append(data);
      kept.replace(data);
      kept.view(curve.to, 240);
      answer([told(curve), told(filled(data, curve.to, 240)), told(kept)]);"""
    )
    appended, built, replaced = node(tmp_path, script, walk(3000))
    assert appended == built == replaced


def test_a_resumed_run_goes_over_its_last_updates_again(tmp_path):
    points = walk(300)
    again = [[u, 9.0] for u in range(251, 280)]
    script = (
        CURVE
        + """
      const curve = filled(data.points, 600, 240);
      curve.append(data.again);
      answer([told(curve), told(filled([...data.points.slice(0, 250), ...data.again], 600, 240))]);"""
    )
    resumed, plain = node(tmp_path, script, {"points": points, "again": again})
    assert resumed == plain and resumed["length"] == 279


def test_what_is_not_finite_is_left_out(tmp_path):
    script = (
        CURVE + "answer(told(filled([[1, 2], [2, NaN], [3, Infinity], [4, null], [NaN, 1], [5, 3]], 8, 4)));"
    )
    found = node(tmp_path, script, None)
    assert (found["length"], found["low"], found["high"], found["counts"]) == (2, 2, 3, [1, 0, 1, 0])


def test_the_view_holds_all_points_and_is_never_less_than_half_full(tmp_path):
    found = node(
        tmp_path, CURVE + "answer(data.map((last) => reach(last, 600, false)));", list(range(1, 601))
    )
    assert all(last <= to <= max(2, 2 * last) for last, to in zip(range(1, 601), found))
    script = CURVE + "answer([reach(17, 600, true), reach(0, 0, false), reach(700, 600, false)]);"
    assert node(tmp_path, script, None) == [17, 1, 700]


def test_pointing_reads_the_nearest_values(tmp_path):
    script = (
        CURVE
        + """
      const loss = filled([[1, 4], [2, 6], [90, 8]], 100, 10);
      const fidelity = filled([[0, 1], [50, 2], [100, 3]], 100, 10);
      const empty = filled([], 100, 10);
      const both = { loss, fidelity };
      answer([lookUp(both, 0), lookUp(both, 8), lookUp({ loss: empty, fidelity }, 5)]);"""
    )
    first, second, third = node(tmp_path, script, None)
    assert first["loss"] == {"mean": 5, "low": 4, "high": 6, "count": 2} and first["fidelity"] == {
        "update": 0,
        "value": 1,
    }
    assert second["update"] == 90 and second["loss"]["mean"] == 8 and second["fidelity"]["update"] == 100
    assert third["loss"] is None and third["fidelity"]["value"] == 2


def test_axes_have_round_ticks_and_turn_logarithmic_beyond_a_decade(tmp_path):
    spans = [
        (0.011, 0.55),
        (0.19, 0.45),
        (0.2, 0.2),
        (0, 0),
        (-3, 5),
        (0, 8),
        (1e-7, 40),
        (0.03, 0.31),
        (1, 1e9),
    ]
    script = (
        CURVE
        + """
      answer(data.map(([low, high]) => {
        const found = axis(low, high);
        return { ...found, ends: [found.at(low), found.at(high)], places: found.ticks.map(found.at) };
      }));"""
    )
    for (low, high), found in zip(spans, node(tmp_path, script, spans)):
        assert found["log"] == (low > 0 and high / low > 10)
        assert 2 <= len(found["ticks"]) <= 7 and found["places"] == sorted(found["places"])
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in found["places"] + found["ends"])


def test_100_000_points_draw_at_30_frames_a_second_while_they_come(tmp_path):
    script = (
        CURVE
        + """
      let calls = 0;
      const context = new Proxy({}, { get: () => () => { calls++; }, set: () => true });
      const [loss, fidelity, area] = [new Curve(), new Curve(), plotArea(640, 240, 2)];
      const colours = { loss: "blue", fidelity: "orange", grid: "grey", text: "grey" };
      const frames = data.length / 500;
      const began = performance.now();
      let most = 0;
      for (let i = 0; i < data.length; i += 500) {
        calls = 0;
        loss.append(data.slice(i, i + 500));
        fidelity.append([[i, 1 / (1 + i)]]);
        const to = reach(loss.last, data.length, false);
        drawCurves(context, area, { loss, fidelity, to, colours, at: 5, shown: i });
        most = Math.max(most, calls);
      }
      const each = (performance.now() - began) / frames;
      answer({ each, most, columns: area.columns, length: loss.length });"""
    )
    found = node(tmp_path, script, walk(100_000))
    assert found["length"] == 100_000
    assert found["each"] < 33
    assert found["most"] < 6 * found["columns"]  # what is drawn depends on the width, not on the points
