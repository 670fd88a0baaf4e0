"""Where the arithmetic is done: this machine's processor, or an accelerator fed piece by piece."""

from __future__ import annotations

import re
import threading
from contextlib import AbstractContextManager, nullcontext

from magmerge.core.errors import ParameterError
from magmerge.core.lazy import Tensor, torch
from magmerge.core.machine import CPU


def moved(tensor: Tensor, like: Tensor, out: Tensor | None = None) -> Tensor:
    """The entries in the format, shape and device of `like`, in memory of their own or in `out`.

    To an accelerator they are copied in their stored format, which is the smaller one, through
    pinned memory, which torch keeps for reuse.
    """
    if like.is_cuda:
        tensor = tensor.pin_memory().to(like.device, non_blocking=True)
    out = torch.empty_like(like) if out is None else out
    return out.copy_(tensor.reshape(like.shape))


class Device:
    """Takes tensors in and gives them back; on the processor they are where they are.

    On a CUDA device each thread has a stream of its own, and copies through pinned memory.
    """

    def __init__(self, name: str = CPU) -> None:
        self._name = name
        self._own = threading.local()

    @property
    def is_cpu(self) -> bool:
        """Whether tensors are in this machine's own memory."""
        return self._name == CPU

    def empty(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Memory there, to be filled."""
        return torch.empty(shape, dtype=dtype, device=self._name)

    def take(self, tensor: Tensor) -> Tensor:
        """The tensor in this machine's memory, finished."""
        if not tensor.is_cuda:
            return tensor
        out = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        out.copy_(tensor, non_blocking=True)
        self._stream().synchronize()
        return out

    def queue(self) -> AbstractContextManager[object]:
        """Within it a thread's work runs beside that of the others."""
        return nullcontext() if self._name == CPU else torch.cuda.stream(self._stream())

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._name)  # type: ignore[no-untyped-call]
        return self._own.stream  # type: ignore[no-any-return]


def open_device(name: str | torch.device) -> Device:
    """The device of this name; ParameterError where there is none."""
    cuda = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", str(name))
    if str(name) == CPU:
        return Device()
    if cuda is None:
        raise ParameterError(f"the device is {name!r}", remedy="it is cpu, cuda, or cuda:1")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(cuda[1] or 0)
    if number >= count:
        raise ParameterError(
            f"there is no device {name}: torch {torch.__version__} sees {count} CUDA devices",
            remedy="use --device cpu, or install the torch build for your GPU",
        )
    return Device(f"cuda:{number}")
