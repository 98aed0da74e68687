"""The report of an experiment, its pictures and its flat table."""

import base64
import csv
import io
import re
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

from fake_results import image_result, make_row, sequence_result
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.report.experiment_report import print_summary, write_experiment_report, write_results_table
from torchmor.experiments.report.results import NetworkResult, Showcase

pytestmark = pytest.mark.slow

COMMAND = "torchmor convolutional --data <made up>"


@pytest.fixture(scope="module")
def networks():
    return [image_result(), sequence_result()]


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_experiment_report(path, "Faster & smaller", COMMAND, networks, {"data": "made up", "levels": {"kept": [1]}})
    return path


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_report_has_everything(text, networks):
    headings = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", text)
    for network in networks:
        assert f"Network {network.key}: {network.title}" in headings
        assert network.description.replace("'", "&#39;") in text
    for heading in ("How to read this", "The best row of each method", "Trajectories", "How to repeat this"):
        assert heading in headings
    assert headings.count("How much state and nonlinearity vary") == 2
    assert "Faster &amp; smaller" in text
    assert "torchmor convolutional --data &lt;made up&gt;" in text
    assert "All 131 rows" in text
    for method in METHODS.values():
        assert method.explanation.replace("'", "&#39;") in text
    assert "unstable &lt;at these sizes&gt;" in text
    assert all(words in text for words in ("pymor", "processor", "wins", "1 thread"))
    for link in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{link}"' in text


def test_report_is_one_file_with_the_pictures_of_the_folder(text, folder):
    assert not re.search(r'(?:src|href)\s*=\s*"(?!data:|#)', text)
    embedded = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)]
    files = {path.name: path.read_bytes() for path in (folder / "plots").iterdir()}
    assert set(embedded) == set(files.values())
    assert set(files) == {
        *(f"{key}-accuracy-{part}-time.png" for key in "ac" for part in ("layer", "network")),
        *(f"{key}-{name}.png" for key in "ac" for name in ("methods-layer-time", "singular-values", "points")),
        *("a-trajectories.png", "c-trajectories.png", "a-points-by-channel.png"),
    }
    for data in embedded:
        image = Image.open(io.BytesIO(data))
        image.verify()
        assert min(image.size) > 200


def test_flat_table_has_all_rows_of_all_seeds(folder, networks):
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [(network.key, seed, row) for network in networks for seed, rows in network.rows.items() for row in rows]
    assert len(lines) == len(rows) > 300
    for line, (key, seed, row) in zip(lines, rows, strict=True):
        assert (line["network"], int(line["seed"]), line["method"]) == (key, seed, row.method)
        assert {size: int(line[size]) for size in ("n", "r", "m", "kept", "rank") if line[size]} == row.sizes
        assert float(line["accuracy_percent"]) == row.accuracy
        assert float(line["difference_low_points"]) == row.difference_interval[0]
        assert line["solver"] == row.solver
        assert (line["own_solver"] == "True") == row.own_solver
        if seed == 0:
            assert float(line["layer_batch_256_wall_s"]) == row.layer[256].wall_s
            assert float(line["network_batch_1_high_s"]) == row.network[1].high_s
        else:
            assert line["layer_batch_256_wall_s"] == line["network_batch_1_high_s"] == ""


def cells(text, method):
    """Entries of a method's line in the first table of best rows."""
    table = text.partition("The best row of each method")[2].partition("</table>")[0]
    (line,) = re.findall(f"<tr[^>]*><td>{method}</td>(.*?)</tr>", table)
    return re.findall(r"<td[^>]*>(.*?)</td>", line)


def small_result(rows, failures=()):
    nothing = Showcase(None, {}, "ode", None)
    return NetworkResult("a", "Made up", "Nothing.", rows, failures, nothing)


FULL = make_row("full", {"n": 1024}, "dopri5", 90.0, 10e-3, own=True)
EULER = make_row("full", {"n": 1024}, "1 Euler step", 89.8, 1e-3)
OURS = make_row("pod-deim", {"r": 4, "m": 8}, "1 Euler step", 89.9, 0.5e-3, parameters=1234)
POOR = make_row("svd", {"rank": 2}, "1 Euler step", 70.0, 0.4e-3)


def test_numbers_in_the_table(tmp_path):
    others = [replace(row, accuracy=row.accuracy + 1, layer={}, network={}) for row in (FULL, OURS)]
    write_experiment_report(tmp_path, "x", COMMAND, [small_result({0: [FULL, EULER, OURS, POOR], 1: others})], {})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert cells(text, "POD–DEIM") == [
        *("r 4, m 8", "1 Euler step", "90.4<small>89.9 – 90.9</small>", "−0.1<small>−1.2 to +0.5</small>", "97.5"),
        *("0.500", "0.0500", "1.50", "0.150", "20", "2.0", "1,234", "10"),
    ]
    assert cells(text, "SVD of weights")[2] == "70.0"
    assert re.search('<tr class="weak"><td>SVD of weights', text)
    assert "a-accuracy-layer-time.png" in {path.name for path in (tmp_path / "plots").iterdir()}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({0: [FULL]}, "the full layer with its own solver is the one to beat"),
        ({0: [FULL, EULER, POOR]}, "No size of these"),
        ({0: [FULL, OURS], 1: [FULL], 2: [FULL, OURS]}, "over 2 seeds"),
        ({0: [replace(row, layer={}, network={}) for row in (FULL, EULER, OURS)]}, "Nothing was timed."),
        ({0: [FULL, EULER, replace(OURS, layer={}, network={})]}, "wins, since no compressed one is good enough"),
    ],
)
def test_narrow_cases(tmp_path, rows, words):
    result = small_result(rows, ["POD–DEIM, r 8: it failed"])
    write_experiment_report(tmp_path, "x", COMMAND, [result], {})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert words in text
    assert "it failed" in text
    assert (tmp_path / "results.csv").exists()
    console = Console(file=io.StringIO(), width=120)
    print_summary(console, [result])
    assert words in " ".join(console.file.getvalue().split())


def test_summary_fits_the_terminal(networks):
    console = Console(file=io.StringIO(), width=120)
    print_summary(console, networks)
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= 120
    assert "…" not in printed
    for method in METHODS.values():
        assert method.words in printed
    assert "not measured: POD–EI-greedy" in printed


def test_no_networks_are_no_error(tmp_path):
    write_results_table(tmp_path / "results.csv", [])
    assert (tmp_path / "results.csv").read_text(encoding="utf-8").strip() == ""
