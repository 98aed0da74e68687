"""What torch may change in any version is known to one file only."""

import ast
import subprocess
import sys

import pytest

from repository import ROOT, modules

THE_FILE = ROOT / "adapters" / "solving" / "torch_private.py"

#: Modules of torch without an underscore that are no public interface either.
EXPERIMENTAL = ("torch.fx.experimental",)


def private_names(source: str) -> list[str]:
    """Dotted names within torch that are private: imported, or reached as attributes; and schemas of operations."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    return [name for name in found if is_private(name)]


def is_private(name: str) -> bool:
    parts = name.split(".")
    if parts[-1] == "_schema":
        return True
    hidden = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return parts[0] == "torch" and (hidden or name.startswith(EXPERIMENTAL))


@pytest.mark.parametrize(
    "line",
    [
        "from torch.utils import _pytree as pytree",
        "from torch.utils._pytree import tree_map",
        "import torch._dynamo.config",
        "from torch._functorch.compile_utils import fx_graph_cse",
        "def f():\n    from torch.fx.experimental import proxy_tensor",
        "torch._dynamo.reset()",
        "isinstance(target, torch._ops.OpOverload)",
        "node.target._schema.name",
    ],
)
def test_private_names_are_found(line):
    assert private_names(line)


def test_public_names_are_none():
    assert not private_names("import torch\nfrom torch.fx import Node\nmodule._buffers\ntorch.__version__\n_own.thing")


def test_only_one_file_knows_them():
    known = {path.relative_to(ROOT).as_posix(): private_names(path.read_text(encoding="utf-8")) for path in modules()}
    assert known.pop(THE_FILE.relative_to(ROOT).as_posix())
    assert {path: names for path, names in known.items() if names} == {}


def test_it_loads_no_compiler():
    """A reduced layer is run without the modules that trace and compile."""
    script = (
        "import sys, torch; before = set(sys.modules); import torchmor.adapters.layers.reduced_layer;"
        "import torchmor.adapters.solving.torch_private;"
        "print([name for name in set(sys.modules) - before if name.startswith('torch.')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout)
    assert not [name for name in loaded if name.split(".")[1] in ("_dynamo", "_inductor", "_functorch")]
    assert "torch.fx.experimental.proxy_tensor" not in loaded
