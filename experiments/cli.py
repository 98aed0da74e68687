"""The command line, `torchmor`."""

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from torchmor.engine.errors import TorchmorError

#: Exit codes: what the user can mend, and Ctrl-C.
FAILED, INTERRUPTED = 2, 130

#: Width of printed text in a pipe, where no terminal says one.
PIPE_WIDTH = 120

app = App(
    name="torchmor",
    help="Make the ODE layers of trained PyTorch networks (Neural ODEs) small and fast.\n\n"
    "Start with `torchmor demo`: in about two minutes it trains a small network, reduces it, and shows what that "
    "gains and costs. In your own code: `from torchmor.adapters import ODELayer, reduce_network`.",
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
    """Train a small convolutional Neural ODE on digits, reduce it, and compare.

    Prints one table: accuracy, time, state and points of the full network with its own solver and with coarse steps,
    and of its reductions. Writes a report with pictures (report.html), the raw numbers (rows.jsonl) and the reduced
    network (reduced.safetensors). Needs no download.
    """
    from torchmor.experiments.demo import run_demo
    from torchmor.experiments.surroundings import threads as limited_threads

    with limited_threads(threads):
        run_demo(out, seed, quick=quick, console=_console())


@app.command
def info(file: Path, /) -> None:
    """Say what a saved reduced layer or network holds: sizes, equation, solver, and how it was reduced.

    Parameters
    ----------
    file
        A file written by `torchmor.adapters.save`.
    """
    from torchmor.experiments.saved_file import describe

    print(describe(file))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its code: 0, 2 for a wrong command or an error, 130 for Ctrl-C."""
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
        if error.filename is None:
            raise
        _fail(f"{error.strerror}: {error.filename}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("sklearn", "matplotlib"):
            raise
        _fail(f"this command needs {error.name}: pip install 'torchmor[experiments]'")


def _fail(message: str, code: int = FAILED) -> None:
    print(f"torchmor: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
