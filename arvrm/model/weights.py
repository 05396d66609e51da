"""A network's weights in a safetensors file, with a checksum of them in the file's own header.

The checksum stands in the same file, so that the two are always of one checkpoint, whenever its writer is killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from arvrm.interface import UserError

WEIGHTS = "model.safetensors"
_DAMAGED = "the file is damaged, copy or make it again"


def save_weights(file: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors, in their own precision, and their checksum; the same tensors give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, file, metadata={"sha256": _checksum(tensors)})


def load_weights(model: nn.Module, folder: str | Path, name: str = WEIGHTS) -> None:
    """Load a file of `folder` into `model`, strictly.

    Raises:
        UserError: the file is missing or fails its checksum (files of older versions have none), names, shapes or kinds
            of numbers differ (the first differences are named), or a tensor holds what is no number.
    """
    file = Path(folder) / name
    tensors, checksum = read_weights(file)
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in own]
    problems += [problem for name in own if name in tensors if (problem := _difference(name, tensors[name], own[name]))]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{file}: does not fit its configuration: {'; '.join(problems[:3])}{more}; use matching files")
    _check(file, tensors, checksum)
    for tensor_name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{file}: {tensor_name} holds NaN or infinity; {_DAMAGED}")
    model.load_state_dict(tensors, strict=True)


def read_checked(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; raises UserError where it cannot be read or fails its checksum."""
    tensors, checksum = read_weights(file)
    _check(file, tensors, checksum)
    return tensors


def _check(file: Path, tensors: Mapping[str, Tensor], checksum: str | None) -> None:
    if checksum is not None and checksum != _checksum(tensors):
        raise UserError(f"{file}: its weights fail their checksum; {_DAMAGED}")


def read_weights(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of a file and the checksum that it states; raises UserError where it cannot be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, (opened.metadata() or {}).get("sha256")
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; give a checkpoint folder") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError, MemoryError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {_DAMAGED}") from error


def _difference(name: str, given: Tensor, own: Tensor) -> str | None:
    if given.shape != own.shape:
        return f"{name} has shape {tuple(given.shape)}, expected {tuple(own.shape)}"
    # Weights may be kept in half precision; whole numbers are no weights.
    if given.dtype != own.dtype and not (given.is_floating_point() and own.is_floating_point()):
        return f"{name} holds {str(given.dtype).removeprefix('torch.')}, not {str(own.dtype).removeprefix('torch.')}"
    return None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
