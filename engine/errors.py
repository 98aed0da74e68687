"""The errors and warnings of torchmor.

Every message says what was expected, what came, and how to mend it. Each class also derives from the
built-in exception that Python programmers would catch, so `except ValueError` keeps working.
"""

from typing import Any


class TorchmorError(Exception):
    """Base class of all errors that torchmor raises on purpose."""


class ShapeError(TorchmorError, ValueError):
    """An array or tensor has the wrong shape."""


class DtypeError(TorchmorError, TypeError):
    """An array or tensor has the wrong dtype."""


class DeviceError(TorchmorError, ValueError):
    """Tensors that must share a device do not."""


class NonFiniteError(TorchmorError, ValueError):
    """Data or a solution contains NaN or infinity."""


class CalibrationError(TorchmorError, ValueError):
    """Calibration data is empty, can be read only once, or does not fit the network."""


class SizeError(TorchmorError, ValueError):
    """A requested reduced size is impossible for the state, a stage or the calibration data."""


class SignatureError(TorchmorError, TypeError):
    """An ODE function takes other arguments than ``(t, y)`` or ``(t, y, u)``, or returns another shape."""


class UnknownLayerError(TorchmorError, LookupError):
    """The network has no ODE layer of the given name."""


class UnsupportedOperationError(TorchmorError, NotImplementedError):
    """The ODE function contains an operation that cannot become part of a stage chain."""


class SolverError(TorchmorError, ArithmeticError):
    """An ODE solver failed: the solution diverged, or the step size underflowed."""


class InputError(TorchmorError, ValueError):
    """The input signal u does not fit the layer: missing, superfluous, or of the wrong form."""


class ParameterError(TorchmorError, ValueError):
    """Values of a pyMOR operator's or model's parameters (mu) are missing, superfluous or of the wrong size."""


class NothingToReduceError(TorchmorError, ValueError):
    """No reduction is as accurate and as cheap as asked, or coarse steps of the full layer are better.

    Attributes
    ----------
    curve
        What the search tried, as in an explanation.
    best
        The best reduced network that was found; None if no size could be reduced.
    network
        The full network with the coarse steps that are better; None if none are.
    """

    curve: tuple[Any, ...] = ()
    best: Any = None
    network: Any = None


class FileFormatError(TorchmorError, ValueError):
    """A saved file is damaged, is no torchmor file, or has a format that this version cannot read."""


class ExportError(TorchmorError, RuntimeError):
    """A module cannot be exported, or the exported file does not compute what torch computes."""


class MissingPackageError(TorchmorError, ImportError):
    """An optional package that is needed here is not installed."""


class NoRecordError(TorchmorError, AttributeError):
    """The layer holds the reduced operators only; the record of its reduction was not saved with it."""


class TorchmorWarning(UserWarning):
    """Base class of all warnings that torchmor gives."""


class NotReducedWarning(TorchmorWarning):
    """The requested sizes shrink nothing: the returned layer is not smaller than the original."""


class FewSamplesWarning(TorchmorWarning):
    """The calibration data has fewer samples than the sizes need: on other data, errors may be larger than stated."""


class LittleGainWarning(TorchmorWarning):
    """The reduced layer is hardly faster than the full one: a reduction does not pay at these sizes."""


class FrozenArgumentWarning(TorchmorWarning):
    """An argument of a network decides about an ODE, and is frozen at its value on the calibration data."""


class NotCompiledWarning(TorchmorWarning):
    """A network is compiled by `torch.compile`; its original is used, and the result is not compiled."""


class NothingLearntWarning(TorchmorWarning):
    """Distillation found nothing better: the network came back as it was."""


class OutsideCalibrationWarning(TorchmorWarning):
    """A state is farther from the reduced space than those of the calibration data, or not finite."""
