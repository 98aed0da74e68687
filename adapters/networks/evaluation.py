"""Running somebody's network on a batch."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.mismatch import explain_mismatch
from torchmor.adapters.networks import torchdyn_layers
from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.solving.torch_private import tree_map_only
from torchmor.engine.errors import CalibrationError, InputError, TorchmorError

_LABELS = "if the batches hold labels, pass batch_to_inputs=lambda b: b[0]"


class RecordedCall(NamedTuple):
    """A call of a module: its arguments, those by name, and its output."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    output: Any


@contextmanager
def recorded_calls(module: nn.Module) -> Iterator[list[RecordedCall]]:
    """List every call of a module that returns, while the context lasts."""
    calls: list[RecordedCall] = []

    def keep(_: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        output = tree_map_only(Tensor, torch.clone, output)  # what follows may change it in place
        calls.append(RecordedCall(arguments, named, output))

    def trajectory(*arguments: Any, **named: Any) -> Any:
        output = type(module).trajectory(module, *arguments, **named)  # type: ignore[attr-defined]
        keep(module, arguments, named, output)
        return output

    hook = module.register_forward_hook(keep, with_kwargs=True)
    if torchdyn_layers.is_neural_ode(module):
        module.__dict__["trajectory"] = trajectory  # which is no forward, and solves too
    try:
        yield calls
    finally:
        hook.remove()
        if torchdyn_layers.is_neural_ode(module):
            del module.__dict__["trajectory"]


def call_network(network: nn.Module, batch: Batch) -> Any:
    """Return ``network(*batch.arguments)``.

    Raises
    ------
    CalibrationError
        The network does not take these arguments.
    DtypeError, DeviceError
        The arguments have another dtype or device than the network's parameters.
    """
    where = f"calibration batch {batch.index}"
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):  # compiled and scripted modules may have none
        signature = None
    if signature is not None:
        try:
            signature.bind(*batch.arguments)
        except TypeError as error:
            raise CalibrationError(
                f"expected arguments for {type(network).__name__}{signature}, got {len(batch.arguments)} in "
                f"{where}: {_LABELS}"
            ) from error
    try:
        return network(*batch.arguments)
    except (TypeError, InputError) as error:
        ours = isinstance(error, TorchmorError) and not isinstance(error, InputError)
        if ours or len(batch.arguments) == 1:
            raise
        raise CalibrationError(
            f"the network failed on the {len(batch.arguments)} arguments of {where}: {error}; {_LABELS}"
        ) from error
    except RuntimeError as error:
        tensors = [argument for argument in batch.arguments if isinstance(argument, Tensor)]
        explained = explain_mismatch(error, network, tensors, f"the arguments in {where}")
        if explained is error and not isinstance(error, torch.OutOfMemoryError):
            given = ", ".join(f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in tensors)
            explained = CalibrationError(
                f"the network failed on {where} ({given}): {error}; expected arguments that it can be called with; "
                f"{_LABELS}"
            )
        raise explained from error
