"""What torch's errors about dtypes and devices mean for users."""

from collections.abc import Iterable

from torch import Tensor, nn

from torchmor.engine.errors import DeviceError, DtypeError


def explain_mismatch(error: RuntimeError, module: nn.Module, tensors: Iterable[Tensor], what: str) -> Exception:
    """Return the DtypeError or DeviceError behind an error of torch, or the error itself.

    Called only after a failure: a module may well mix dtypes and devices on purpose.

    Parameters
    ----------
    error
        What was raised when `module` was called with `tensors`.
    module
        The module.
    tensors
        Its arguments.
    what
        What the arguments are, for the message.
    """
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    for tensor in tensors:
        if parameter is None or not tensor.is_floating_point():
            continue
        if tensor.device != parameter.device:
            return DeviceError(
                f"expected {what} on {parameter.device}, as the parameters, got {tensor.device}: move one to the other"
            )
        if tensor.dtype != parameter.dtype:
            return DtypeError(
                f"expected {what} of {parameter.dtype}, as the parameters, got {tensor.dtype}: convert one to the other"
            )
    return error
