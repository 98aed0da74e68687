"""Between stage chains (engine, float64) and chain modules (torch)."""

import numpy as np
import torch

from torchmor.adapters.layers.arrays import to_array, to_tensor
from torchmor.adapters.layers.chain_module import AffineModule, ChainModule
from torchmor.engine.affine import AffineMap, dense
from torchmor.engine.errors import SizeError
from torchmor.engine.stages import Stage, StageChain

#: A map with more entries than this is refused: it would need 1 GiB in float64.
MAX_ENTRIES = 2**27


def chain_to_module(
    chain: StageChain, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> ChainModule:
    """Return a stage chain as a torch module with dense matrices.

    Raises
    ------
    SizeError
        A map is too large for a dense matrix: reduce the chain first.
    """
    chain = chain.numbered()
    weights = [_matrix(affine) for affine in chain.maps]
    module = ChainModule(
        chain.state_size,
        chain.input_size,
        [stage.expression for stage in chain.stages],
        [(dict(zip(affine.sources, affine.sizes, strict=True)), affine.size) for affine in chain.maps],
        dtype,
        device,
    )
    with torch.no_grad():
        for affine, weight, target in zip(chain.maps, weights, (*module.stages, module.output), strict=True):
            target.weight.copy_(to_tensor(weight, dtype, device))
            target.bias.copy_(to_tensor(affine.shift, dtype, device))
    return module


def module_to_chain(module: ChainModule) -> StageChain:
    """Return the stage chain of a module, from its current parameters."""

    def affine(source: AffineModule) -> AffineMap:
        return AffineMap(
            tuple(source.sources), tuple(source.sources.values()), to_array(source.weight), to_array(source.bias)
        )

    stages = tuple(
        Stage(f"g{number}", expression, affine(argument))
        for number, (expression, argument) in enumerate(zip(module.expressions, module.stages, strict=True), 1)
    )
    return StageChain(module.state_size, module.input_size, stages, affine(module.output))


def _matrix(affine: AffineMap) -> np.ndarray:
    rows, columns = affine.linear.shape
    if rows * columns > MAX_ENTRIES:
        raise SizeError(
            f"expected maps that fit into dense matrices of {MAX_ENTRIES} entries, got one of {rows} × {columns}: "
            "reduce the state, or the points of the stages, before making a module"
        )
    linear = affine.restrict(np.arange(rows)).linear if affine.is_opaque else affine.linear
    return dense(linear)
