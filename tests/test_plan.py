"""The plan of the house in CONTRIBUTING.md is true: imports go from a room to those before it, and never in a circle."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "leignn_jax"

# Methods that import what is above them, so that `potential.save(...)` and `potential.calculator()` are there.
UPWARD = {("potential", "potential_file"), ("potential", "interop"), ("potential", "exported")}


def plan():
    """Rooms by floor, from the ground up."""
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    block = re.search(r"<!-- plan -->\n```\n(.*?)```", text, re.S).group(1)
    return [re.findall(r"[a-z_]+", line.split("  ")[0]) for line in block.strip().splitlines()]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":
            yield path.relative_to(PACKAGE), ast.parse(path.read_text())


def imports(tree, *, lazy):
    """Modules of the package that a module imports; ``lazy`` counts what functions import when they are called."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef) and not lazy:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("leignn_jax."):
            yield node.module.removeprefix("leignn_jax.")
        elif isinstance(node, ast.ImportFrom) and node.module == "leignn_jax":
            yield from (name.name for name in node.names if name.name != "__version__")
        waiting.extend(ast.iter_child_nodes(node))


def room_of(name):
    return re.split(r"[./]", name.removesuffix(".py"))[0]


def test_every_room_is_in_the_plan():
    there = {room_of(str(path)) for path, _ in modules()}
    drawn = [room for floor in plan() for room in floor]
    assert sorted(drawn) == sorted(set(drawn)), "a room is drawn twice"
    assert there == set(drawn)


@pytest.mark.parametrize("path", [str(path) for path, _ in modules()])
def test_imports_go_down(path):
    floors = {room: number for number, floor in enumerate(plan()) for room in floor}
    here = room_of(path)
    for other in map(room_of, imports(ast.parse((PACKAGE / path).read_text()), lazy=True)):
        assert other == here or floors[other] < floors[here] or (here, other) in UPWARD, f"{path} imports {other}"


def test_no_circles():
    """Of modules, also within a room."""
    above = {}
    for path, tree in modules():
        name = str(path.with_suffix("")).replace("/", ".").removesuffix(".__init__")
        others = set(imports(tree, lazy=True)) - {name}
        above[name] = {other for other in others if (room_of(name), room_of(other)) not in UPWARD}
    while leaves := [name for name, others in above.items() if not others & above.keys()]:
        for name in leaves:
            del above[name]
    assert not above
