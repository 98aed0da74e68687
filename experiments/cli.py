"""The command line, `torchmor`."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console

from torchmor.engine.errors import LittleGainWarning, TorchmorError
from torchmor.experiments.inspect.plain_text import printable

if TYPE_CHECKING:
    from torchmor.experiments.data.labelled import DataSet
    from torchmor.experiments.studies.experiment import Experiment

#: Exit codes: what the user can mend, and Ctrl-C.
FAILED, INTERRUPTED = 2, 130

#: Seeds are those that every library takes; more threads than this no machine has.
_MOST_SEED, _MOST_THREADS = 2**32 - 1, 1024

#: Width of printed text in a pipe, where no terminal says one.
PIPE_WIDTH = 120

app = App(
    name="torchmor",
    help="Make the ODE layers of trained PyTorch networks (Neural ODEs) small and fast.\n\n"
    "Start with `torchmor demo`: in about two minutes it trains a small network, reduces it, and shows what that "
    "gains and costs. `torchmor convolutional` and `torchmor recurrent` compare it with other methods, on several data "
    "sets; `torchmor functions` reduces ODE functions of the forms that people publish, and `torchmor one-call` tells "
    "what one default call makes of all of them. In your own code: `from torchmor.adapters import ODELayer, "
    "reduce_network`.",
    version=lambda: metadata.version("torchmor"),
    suppress_keyboard_interrupt=False,
)


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the report, the raw numbers and the reduced network.")] = Path(
        "torchmor-demo"
    ),
    seed: Annotated[int, Parameter(help="Seed of everything that is random.")] = 0,
    threads: Annotated[int, Parameter(help="Threads of all computations; 1 gives the steadiest times.")] = 1,
    quick: Annotated[bool, Parameter(negative="", help="Seconds instead of minutes; the numbers mean little.")] = False,
) -> None:
    """Train a small convolutional Neural ODE on digits, reduce it by one call, and compare.

    Prints what the call gained and lost in its first line, then one table: accuracy, time, state and points of the full
    network with its own solver and with coarse steps, and of the reduced one. Writes a report with pictures
    (report.html), the raw numbers (rows.jsonl) and the reduced network (reduced.safetensors). Needs no download.
    """
    from torchmor.experiments.measure.surroundings import threads as limited_threads
    from torchmor.experiments.studies.demo import run_demo

    _check(seed, threads, out)
    with limited_threads(threads):
        run_demo(out, seed, quick=quick, console=_console())


_Data = Annotated[str, Parameter(help="Data set.")]
_DataDir = Annotated[Path | None, Parameter(help="Folder with downloaded data.")]
_Out = Annotated[Path | None, Parameter(help="Folder for everything that is written.", show_default=False)]
_Seed = Annotated[int, Parameter(help="Seed of everything that is random.")]
_Seeds = Annotated[int, Parameter(help="Number of networks of each kind, trained with consecutive seeds.")]
_Threads = Annotated[
    int, Parameter(help="Threads of the timed calls; everything else takes all cores, or OMP_NUM_THREADS.")
]
_Quick = Annotated[bool, Parameter(negative="", help="Under two minutes, to see it work; the numbers mean little.")]


@app.command
def convolutional(
    *,
    data: _Data = "digits",
    data_dir: _DataDir = None,
    out: _Out = None,
    seed: _Seed = 0,
    seeds: _Seeds = 3,
    threads: _Threads = 1,
    quick: _Quick = False,
) -> None:
    """Compare all methods on image networks: acceleration against accuracy.

    Trains two networks with a convolutional ODE layer on `digits`, `fashion-mnist` or `mnist`, and makes them faster by
    model order reduction, neuron pruning, SVD of the weights, Torch-Pruning and coarse solvers, each at every level of
    compression. Writes report.html, plots/, results.jsonl and results.csv to `torchmor-convolutional-DATA`. Ctrl-C
    keeps the rows that are done, and the same command goes on from there.
    """
    from torchmor.experiments.data.images import load_images
    from torchmor.experiments.studies.convolutional import EXPERIMENT

    _experiment(EXPERIMENT, load_images, data, data_dir, out, seed, seeds, threads, quick)


@app.command
def recurrent(
    *,
    data: _Data = "digits",
    data_dir: _DataDir = None,
    out: _Out = None,
    seed: _Seed = 0,
    seeds: _Seeds = 3,
    threads: _Threads = 1,
    quick: _Quick = False,
) -> None:
    """Compare all methods on networks for sequences: acceleration against accuracy.

    Trains two networks whose ODE layer is driven by the sequence, on `digits` (read row by row), `japanese-vowels` or
    another bundled data set (these need torchmor[sequences]), or on NAME_TRAIN.ts and NAME_TEST.ts of the UCR and UEA
    archives in `--data-dir`. Otherwise like `torchmor convolutional`; writes to `torchmor-recurrent-DATA`.
    """
    from torchmor.experiments.data.sequences import load_sequences
    from torchmor.experiments.studies.recurrent import EXPERIMENT

    _experiment(EXPERIMENT, load_sequences, data, data_dir, out, seed, seeds, threads, quick)


@app.command
def functions(
    *,
    images: Annotated[str, Parameter(help="Data set of images: digits, fashion-mnist or mnist.")] = "digits",
    sequences: Annotated[str, Parameter(help="Data set of sequences, as of `torchmor recurrent`.")] = "digits",
    data_dir: _DataDir = None,
    out: _Out = None,
    seed: _Seed = 0,
    threads: _Threads = 1,
    quick: _Quick = False,
) -> None:
    """Reduce ODE functions of the forms that people publish, unmodified, each by one call.

    Trains a network with group normalisations and time channels on images (the form of torchdiffeq's example for
    MNIST), and on sequences a latent ODE, a rate network and a neural CDE. Reduces them, distils the first,
    and prints what that loses on test data and gains on the clock. Writes functions.json and the trained networks to
    `torchmor-functions`.
    """
    from torchmor.experiments.data.images import load_images
    from torchmor.experiments.data.sequences import load_sequences
    from torchmor.experiments.studies.functions import Setting, run_functions

    out = out or Path("torchmor-functions")
    _check(seed, threads, out, data_dir)
    setting = Setting(out, seed, threads, quick)
    data = load_images(images, seed, data_dir), load_sequences(sequences, seed, data_dir)
    run_functions(*data, setting, _console())


@app.command
def one_call(
    *,
    images: Annotated[str, Parameter(help="Data set of images: digits, fashion-mnist or mnist.")] = "digits",
    sequences: Annotated[str, Parameter(help="Data set of sequences, as of `torchmor recurrent`.")] = "digits",
    data_dir: _DataDir = None,
    out: _Out = None,
    seed: _Seed = 0,
    seeds: _Seeds = 3,
    coverage: Annotated[int, Parameter(help="Number of small networks to count on how often stated bounds hold.")] = 60,
    threads: _Threads = 1,
    quick: _Quick = False,
) -> None:
    """Reduce every network by one default call: what is lost on test data, what was stated, gained and taken.

    The networks are those of `torchmor convolutional`, `recurrent` and `functions`, and two small ones on digits. Also
    counts, on small networks, how often a bound that a call states with 95 % confidence holds on fresh data. Writes
    report.html, results.jsonl and the trained networks to `torchmor-one-call-IMAGES-SEQUENCES`. Ctrl-C keeps the calls
    that are done, and the same command goes on from there.
    """
    from torchmor.experiments.data.images import load_images
    from torchmor.experiments.data.sequences import load_sequences
    from torchmor.experiments.studies.functions import Setting
    from torchmor.experiments.studies.one_call import in_short, run_one_call, subjects

    out = out or Path(f"torchmor-one-call-{images}-{sequences}")
    _check(seed, threads, out, data_dir, seeds)
    if not 0 <= coverage <= _MOST_SEED - seed:
        _fail(f"expected --coverage from 0 to {_MOST_SEED - seed}, got {coverage}")
    command = f"torchmor one-call --images {images} --sequences {sequences} --seed {seed} --seeds {seeds}"
    command += f" --coverage {coverage} --threads {threads}" + " --quick" * quick
    chosen = subjects(load_images(images, seed, data_dir), load_sequences(sequences, seed, data_dir), seed)
    counted: Sequence[int] = range(seed, seed + seeds)
    if quick:
        chosen, counted, coverage = in_short(chosen, counted, coverage)
    setting = Setting(out, seed, threads, quick)
    run_one_call(chosen, counted, coverage, setting, command=command, console=_console())


def _experiment(
    experiment: "Experiment",
    load: Callable[[str, int, Path | None], "DataSet"],
    data: str,
    data_dir: Path | None,
    out: Path | None,
    seed: int,
    seeds: int,
    threads: int,
    quick: bool,
) -> None:
    from torchmor.experiments.studies.experiment import Scale, in_short, run_experiment

    folder = out or Path(f"torchmor-{experiment.name}-{data}")
    _check(seed, threads, folder, data_dir, seeds)
    command = f"torchmor {experiment.name} --data {data} --seed {seed} --seeds {seeds} --threads {threads}"
    scale, loaded = Scale(range(seed, seed + seeds), timing_threads=threads), load(data, seed, data_dir)
    if quick:
        command += " --quick"
        experiment, scale, loaded = in_short(experiment, scale, loaded)
    run_experiment(experiment, loaded, folder, scale, command=command, console=_console())


def _check(seed: int, threads: int, out: Path, data_dir: Path | None = None, seeds: int = 1) -> None:
    """Refuse what would fail after a while."""
    for name, value, least, most in (
        ("threads", threads, 1, _MOST_THREADS),
        ("seeds", seeds, 1, _MOST_SEED),
        ("seed", seed, 0, _MOST_SEED - seeds),
    ):
        if not least <= value <= most:
            _fail(f"expected --{name} from {least} to {most}, got {value}")
    if data_dir is not None and not data_dir.is_dir():
        _fail(f"expected a folder as --data-dir, got {data_dir}, which is none")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists() or folder.is_symlink())
    if not there.is_dir():
        _fail(f"expected a folder, or a name for a new one, as --out, got {out}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        _fail(f"expected a folder that may be written as --out, got {out}: say another one")


@app.command
def info(file: Path, /) -> None:
    """Say what a saved or exported reduced layer or network holds: sizes, equation, solver, and how it was reduced.

    Of an exported file also inputs, outputs and operations. Nothing in the file is executed.

    Parameters
    ----------
    file
        A file written by `torchmor.adapters.save` (.safetensors), or by `export_onnx` (.onnx), `export_program`,
        `export_inductor` (.pt2) and `export_executorch` (.pte).
    """
    from torchmor.experiments.inspect import exported_file, saved_file

    print((exported_file if file.suffix in exported_file.SUFFIXES else saved_file).describe(file))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its code: 0, 2 for a wrong command or an error, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # "×" where a terminal knows ASCII only
            stream.reconfigure(errors="backslashreplace")
    warnings.simplefilter("ignore", LittleGainWarning)  # the comparisons try sizes that do not pay, and show it
    try:
        app(arguments)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `torchmor info FILE | head`
        sys.stderr.close()
        sys.exit(0)
    except TorchmorError as error:
        _fail(str(error))
    except OSError as error:
        said = str(error) if error.strerror is None else error.strerror
        _fail(said if error.filename is None else f"{said}: {os.fsdecode(error.filename)}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("sklearn", "matplotlib", "threadpoolctl"):
            raise
        _fail(f"this command needs {error.name}: pip install 'torchmor[experiments]'")


def _fail(message: str, code: int = FAILED) -> None:
    print(f"torchmor: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
