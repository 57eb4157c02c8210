"""A graph in the host's API format, read by the types of its slots: what `one_click_rules.py` judges with.

    graph = ApiGraph(prompt, info)      prompt: what the frontend would queue; info: the server's /object_info
    graph.origin("12:5", "model")       (id, slot) that feeds an input, through switches; None for a value
    graph.value("12:5", "cfg")          what an input is worth; UNREAD where only running the graph tells

Nothing here knows the pack's own scripts.
"""

import ast
import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any

UNREAD = object()
MOST = 10_000
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
}
_FUNCTIONS = {"min": min, "max": max, "floor": math.floor, "ceil": math.ceil, "round": round, "int": int}

End = tuple[str, int]


class ApiGraph:
    """The nodes of a prompt, ids as the server knows them: "12:5" is node 5 in the subgraph node 12."""

    def __init__(self, prompt: dict, info: dict):
        self.nodes = {i: node for i, node in prompt.items() if node.get("class_type") in info}
        self.info = info

    def kind(self, i: str) -> str:
        """Class of a node."""
        return self.nodes[i]["class_type"]

    def title(self, i: str) -> str:
        """What the user sees above a node."""
        return self.nodes[i].get("_meta", {}).get("title") or self.kind(i)

    def input_type(self, i: str, name: str) -> str | None:
        """Type of a slot; that of a dynamic one from what feeds it."""
        groups = self.info[self.kind(i)]["input"]
        found = next(
            (groups[g][name][0] for g in ("required", "optional") if name in groups.get(g, {})), None
        )
        if isinstance(found, str) and not found.startswith("COMFY_") and found != "*":
            return found
        end = self.origin(i, name)
        return self.output_type(*end) if end else None

    def output_type(self, i: str, slot: int) -> str | None:
        """Type of an output; one that takes any type has that of its first wired input."""
        outputs = self.info[self.kind(i)]["output"]
        found = outputs[slot] if slot < len(outputs) else None
        if found in ("*", "COMFY_MATCHTYPE_V3") and not self._is_switch(i):
            return next((self.input_type(i, name) for name in self.wired(i)), None)
        return found if isinstance(found, str) else "COMBO"

    def outputs(self, i: str) -> list[str]:
        """Types of a node's outputs."""
        return [self.output_type(i, slot) for slot in range(len(self.info[self.kind(i)]["output"]))]

    def wired(self, i: str) -> list[str]:
        """Names of the inputs that are fed by a node."""
        inputs = self.nodes[i]["inputs"]
        return [n for n, v in inputs.items() if isinstance(v, list) and len(v) == 2 and v[0] in self.nodes]

    def inputs_of(self, i: str, *types: str) -> list[str]:
        """Names of the wired inputs of these types."""
        return [name for name in self.wired(i) if self.input_type(i, name) in types]

    def _is_switch(self, i: str) -> bool:
        return {"switch", "on_true", "on_false"} <= set(self.nodes[i]["inputs"])

    def origin(self, i: str, name: str) -> End | None:
        """The end that feeds an input, past switches as they stand now."""
        value = self.nodes[i]["inputs"].get(name)
        for _ in range(MOST):
            if not (isinstance(value, list) and len(value) == 2 and value[0] in self.nodes):
                return None
            source = value[0]
            if not self._is_switch(source):
                return source, value[1]
            turned = self.value(source, "switch")
            if turned is UNREAD:
                return source, value[1]
            value = self.nodes[source]["inputs"]["on_true" if turned else "on_false"]
        return None

    def value(self, i: str, name: str) -> Any:
        """What an input is worth: its own value, or one that nodes of plain values make."""
        value = self.nodes[i]["inputs"].get(name)
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
            return value
        end = self.origin(i, name)
        if end:
            return self._made(*end)
        last = value
        while isinstance(last, list) and last[0] in self.nodes and self._is_switch(last[0]):
            side = "on_true" if self.value(last[0], "switch") else "on_false"
            last = self.nodes[last[0]]["inputs"].get(side)
        return UNREAD if isinstance(last, list) else last

    def _made(self, i: str, slot: int) -> Any:
        kind = self.kind(i)

        def get(name: str) -> Any:
            return self.value(i, name)

        if kind.startswith("Primitive"):
            return get("value")
        if kind == "CustomCombo":
            return get("choice") if slot == 0 else UNREAD
        if kind == "ComfyNumberConvert":
            value = get("value")
            return UNREAD if value is UNREAD else (float, int)[slot](float(value))
        if kind == "StringConcatenate":
            parts = [get("string_a"), get("string_b")]
            return UNREAD if UNREAD in parts else (get("delimiter") or "").join(parts)
        if kind == "StringReplace":
            parts = [get("string"), get("find"), get("replace")]
            return UNREAD if UNREAD in parts else parts[0].replace(parts[1], parts[2])
        if kind == "ComfyMathExpression":
            return self._calculated(i, slot)
        return UNREAD

    def _calculated(self, i: str, slot: int) -> Any:
        names = {n.split(".")[-1]: self.value(i, n) for n in self.nodes[i]["inputs"] if n != "expression"}
        try:
            value = _evaluate(ast.parse(str(self.value(i, "expression")), mode="eval").body, names)
            return (float, int, bool)[slot](value)
        except (KeyError, TypeError, ValueError, SyntaxError, ZeroDivisionError):
            return UNREAD

    def above(self, starts: Iterable[str], *types: str) -> list[str]:
        """These nodes and those above them along wires of these types, the nearest first."""
        found = list(dict.fromkeys(starts))
        for i in found:  # grows while it is walked
            for name in self.inputs_of(i, *types):
                end = self.origin(i, name)
                if end and end[0] not in found:
                    found.append(end[0])
        return found

    def goals(self, i: str) -> Iterator[tuple[int, str, str]]:
        """(slot, id, input) that a node's outputs feed, through switches."""
        for other in self.nodes:
            for name in self.wired(other):
                end = self.origin(other, name)
                if end and end[0] == i and not self._is_switch(other):
                    yield end[1], other, name

    def is_shown(self, i: str) -> bool:
        """Whether an output of the graph, a saved picture for instance, needs a node."""
        met = [i]
        for one in met:
            if self.info[self.kind(one)].get("output_node"):
                return True
            met += [to for _, to, _ in self.goals(one) if to not in met]
        return False


def _evaluate(node: ast.expr, names: dict) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluate(node.left, names), _evaluate(node.right, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _FUNCTIONS[node.func.id](*(_evaluate(one, names) for one in node.args))
    raise ValueError(type(node).__name__)
