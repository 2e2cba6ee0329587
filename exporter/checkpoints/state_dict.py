"""State dicts: checks, sizes, and loading into a module."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import DisaError

# Types of plain weights; quantised types would need their scales.
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: Path | str,
) -> None:
    """Load `state` into `module`; every tensor of the module must be present and fit.

    Tensors are converted to the module's dtypes. A module on the meta device uses the tensors
    themselves, without a copy.

    Args:
        where: the file of the tensors, for error messages.

    Raises:
        DisaError: tensors are missing, of another shape, not floats, not finite, or too large for
            the module's dtypes.
    """
    expected = module.state_dict()
    name = type(module).__name__
    missing = [key for key in expected if key not in state]
    if missing:
        raise DisaError(
            f"{where}: {len(missing)} of the {len(expected)} tensors of {name} are missing "
            f"({_few(missing)}): it is a different model, or the configuration is wrong"
        )
    chosen = {key: state[key] for key in expected}
    misfits = [
        f"{key} is {_shape(tensor)}, not {_shape(expected[key])}"
        for key, tensor in chosen.items()
        if tensor.shape != expected[key].shape
    ]
    if misfits:
        raise DisaError(
            f"{where}: {len(misfits)} of the {len(expected)} tensors of {name} have other shapes "
            f"({_few(misfits)}): the model has another size, or the configuration is wrong"
        )
    floats = {key: tensor for key, tensor in chosen.items() if expected[key].is_floating_point()}
    check_floats(floats, where)
    check_finite(floats, where)
    check_range(floats, {key: tensor.dtype for key, tensor in expected.items()}, where)
    on_meta = any(tensor.is_meta for tensor in expected.values())
    if on_meta:
        chosen = {key: tensor.to(expected[key].dtype) for key, tensor in chosen.items()}
    module.load_state_dict(chosen, assign=on_meta)


def check_floats(state: Mapping[str, Tensor], where: Path | str) -> None:
    """Check that all tensors are of a float type.

    Raises:
        DisaError: a tensor is of an integer or quantised type.
    """
    odd = [f"{key} is {_dtype(t)}" for key, t in state.items() if t.dtype not in FLOATS]
    if odd:
        raise DisaError(
            f"{where}: {len(odd)} of {len(state)} weights are not fp32, fp16 or bf16 "
            f"({_few(odd)}): use the unquantised weights"
        )


def check_finite(state: Mapping[str, Tensor], where: Path | str) -> None:
    """Check that all floating-point tensors are finite.

    Raises:
        DisaError: a tensor has NaN or infinite values.
    """
    bad = [key for key, tensor in state.items() if not _is_finite(tensor)]
    if bad:
        raise DisaError(
            f"{where}: {len(bad)} of {len(state)} tensors have NaN or infinite values "
            f"({_few(bad)}): the training diverged or the file is damaged"
        )


def check_range(
    state: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], where: Path | str
) -> None:
    """Check that finite tensors stay finite in other dtypes.

    Raises:
        DisaError: a tensor has values that become infinite.
    """
    for key, tensor in state.items():
        dtype = dtypes[key]
        if (largest := overflowing(tensor, dtype)) is not None:
            raise DisaError(
                f"{where}: the tensor {key} has values up to {largest:.3g}, which are infinite in "
                f"{_dtype(torch.empty(0, dtype=dtype))}: the training diverged or the file is "
                "damaged"
            )


def overflowing(tensor: Tensor, dtype: torch.dtype) -> float | None:
    """The largest absolute value of a tensor if it is finite, and infinite in `dtype`."""
    if torch.finfo(tensor.dtype).max <= torch.finfo(dtype).max or not tensor.numel():
        return None
    # Rounding keeps the order of values, so the extremes decide.
    largest = torch.stack(torch.aminmax(tensor)).abs().max()
    infinite = torch.isfinite(largest) and not torch.isfinite(largest.to(dtype))
    return float(largest) if infinite else None


def shape_of(
    state: Mapping[str, Tensor], key: str, dims: int, where: Path | str
) -> tuple[int, ...]:
    """The shape of a tensor that must have `dims` dimensions.

    Raises:
        DisaError: it is missing, or has another number of dimensions.
    """
    tensor = state.get(key)
    if tensor is None:
        raise DisaError(
            f"{where}: the tensor {key} is missing: it is a different model, or incomplete"
        )
    if tensor.ndim != dims or not tensor.numel():
        raise DisaError(
            f"{where}: {key} has the shape {_shape(tensor)} instead of {dims} dimensions: "
            "it is a different model"
        )
    return tuple(tensor.shape)


def count_blocks(state: Mapping[str, Tensor], prefix: str, where: Path | str) -> int:
    """The number of blocks `PREFIX.0`, `PREFIX.1`, ...; 0 if there is none.

    Raises:
        DisaError: the numbers have a gap.
    """
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.")
    numbers = {int(found[1]) for key in state if (found := pattern.match(key))}
    if numbers != set(range(len(numbers))):
        absent = min(set(range(max(numbers))) - numbers)
        raise DisaError(
            f"{where}: {prefix}.{absent} is missing among its blocks: the file is incomplete"
        )
    return len(numbers)


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype not in FLOATS:
        tensor = tensor.float()
    # The extremes of a tensor with NaN are NaN, and finding them allocates nothing.
    return all(bool(torch.isfinite(value)) for value in torch.aminmax(tensor))


def _few(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
