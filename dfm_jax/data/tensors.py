"""Named arrays as the bytes of a safetensors file: numbers alone, so nothing executes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dfm_jax.checks import require
from dfm_jax.data.packages import package_folder
from dfm_jax.models.weight_files import check_safetensors_header


def tensors_to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a safetensors file.

    Raises:
        MissingDataError: if safetensors is not installed.
    """
    package_folder("safetensors", "safetensors")  # says how to install it
    from safetensors.numpy import save

    # It writes the memory as it lies, whatever the strides.
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def read_tensors(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, which must be these.

    Raises:
        ValueError: if the file is damaged or of another kind, or holds other arrays.
        MissingDataError: if safetensors is not installed.
    """
    package_folder("safetensors", "safetensors")
    from safetensors import SafetensorError
    from safetensors.numpy import load

    check_safetensors_header(path)
    try:
        arrays = load(path.read_bytes())
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that NumPy has not
        raise ValueError(f"{path} must hold safetensors; it is damaged ({error}).") from error
    require(set(arrays) == set(names), f"{path} must hold {sorted(names)}", sorted(arrays))
    return arrays
