"""Progress over batches, shown on a terminal."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.progress import track

from torchmor.adapters.networks.calibration import Batch, Calibration


def shown(calibration: Calibration, progress: bool, words: str) -> Iterable[Batch]:
    """Return the batches, behind a progress bar where one is asked for and standard error is a terminal."""
    if not (progress and sys.stderr.isatty()):
        return calibration
    total = calibration.total_batches()
    return track(calibration, words, total, console=Console(stderr=True), transient=True)
