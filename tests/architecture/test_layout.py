"""The plan of the house: each folder has one sentence, and all that lists the folders agrees."""

import ast
import re

import pytest

from repository import FOLDERS, PYPROJECT, ROOT
from torchmor import adapters

ROOMS = {path.parent.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
#: What is behind the names that users call, and on top of all.
FACES = {"adapters", "experiments"}
MOST_MODULES = 18


def sentence(room: str) -> str:
    """The first line of a package's docstring."""
    return ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())).partition("\n")[0]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_say_what_the_packages_say(document):
    rows = dict(re.findall(r"^\| `([a-z/]+)/` \| (.+) \|$", (ROOT / document).read_text(), re.MULTILINE))
    assert rows == {room: sentence(room) for room in ROOMS - FACES}
    assert all(row.startswith("From ") for row in rows.values()), "what comes in, and what goes out"


def test_documents_have_the_rooms_in_the_order_of_the_floors():
    """What is imported stands above what imports it, as import-linter has it."""
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    floors = {name: one["layers"] for one in contracts if one["type"] == "layers" for name in one.get("containers", [])}
    assert set(floors) == {f"torchmor.{folder}" for folder in FACES}
    order = re.findall(r"^\| `([a-z/]+)/` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    for folder in FACES:
        of_folder = [room.removeprefix(f"{folder}/") for room in order if room.startswith(f"{folder}/")]
        height = {room: -i for i, floor in enumerate(floors[f"torchmor.{folder}"]) for room in re.split(r"\W+", floor)}
        assert of_folder == sorted(of_folder, key=height.__getitem__)


@pytest.mark.parametrize("room", sorted(ROOMS - {"engine"}))
def test_rooms_are_not_crowded(room):
    assert len(list((ROOT / room).glob("*.py"))) <= MOST_MODULES


def test_editors_see_the_lazy_names():
    """What is imported for type checkers only is what is imported by name when it is used."""
    tree = ast.parse((ROOT / "adapters" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
    seen = {name.name: node.module for node in block.body for name in node.names}
    assert seen == {name: f"torchmor.adapters.{room}" for name, room in adapters._MODULES.items()}
    assert sorted(seen) == adapters.__all__
