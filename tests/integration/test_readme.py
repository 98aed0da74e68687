"""What the README shows is run."""

import re

import pytest
import torch

from repository import ROOT
from torchmor.adapters.tracing.operations import support_table

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^make (\w+)", README, re.MULTILINE)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """Run the Python blocks one after the other, as a reader would in one session."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            exec(compile(block, "README.md", "exec"), names)
    return names


def test_first_example_reduces(namespace):
    layer = namespace["small"][1]
    assert (layer.ode.state_size, layer.ode.expressions[0].text(["a"])) == (16, "tanh(a)")
    x = torch.randn(5, 8)
    assert torch.dist(namespace["small"](x), namespace["network"](x)) < 0.2 * namespace["network"](x).norm()


def test_files_example_restores_the_layer(namespace):
    x = torch.randn(5, 8)
    assert torch.equal(namespace["again"](x), namespace["small"](x))


def test_pymor_example_returns_to_torch(namespace):
    z, rom = torch.randn(3, 8, dtype=torch.float64), namespace["rom"]
    expected = rom.operator.apply(rom.solution_space.from_numpy(z.numpy().T)).to_numpy().T
    torch.testing.assert_close(namespace["module"](z), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    assert len(namespace["U"]) == 2


def test_support_table_is_the_one_of_the_code():
    shown = re.search(r"<!-- supported: begin -->\n(.*?)\n<!-- supported: end -->", README, re.DOTALL).group(1)
    assert shown == support_table(), "run python -m torchmor.adapters.tracing.operations and paste what it prints"


@pytest.mark.parametrize("command", COMMANDS or ["no command in the README"])
def test_make_commands_exist(command):
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
