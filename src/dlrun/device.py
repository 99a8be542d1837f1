"""Which device to run on, and in which precision."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch

from dlrun.registry import ConfigError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA if there is one, else the CPU), `cpu`, `cuda` or `cuda:N`. Raises ConfigError for one that is not here."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdigit()) or name.endswith(":"):
        raise ConfigError(f"device: got '{name}'; allowed: auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ConfigError(
            f"device: '{name}' asked for, but this machine has no usable CUDA device; use device=cpu or auto"
        )
    if int(number or 0) >= count:
        raise ConfigError(f"device: '{name}' asked for, but this machine has cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", int(number or 0))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of a precision (`fp32`: none)."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Loss scaling for fp16, whose gradients underflow without it; None for the other precisions."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def describe_device(device: torch.device) -> str:
    """The device as results report it: 'cpu (2 threads)' or 'cuda:0 (NVIDIA ...)'."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def set_deterministic(deterministic: bool) -> None:
    """Makes the kernels deterministic too (`trainer.deterministic`); some CUDA operations then raise or slow down.

    In any case fp32 means fp32: cuDNN would compute convolutions in TF32, with 10 bits of mantissa, by default. And no
    kernel is chosen by timing it (cuDNN's benchmark mode), since another choice changes the last bits.
    """
    import os

    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if (
        deterministic != torch.are_deterministic_algorithms_enabled()
    ):  # the call loads the compiler, which takes a second
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Tells the C library to keep what is freed for the next step, instead of giving it back to the system.

    By default glibc maps tensors of some megabytes anew, or trims the heap, in every step, so that each page of the
    activations is faulted in again: 12,000 to 17,000 page faults and half of the time of a step were seen with a small
    ResNet. Changes no number. Settings that the user has made (`MALLOC_..._`, `GLIBC_TUNABLES`) are left alone; other
    libraries have no such switch.
    """
    import ctypes
    import os

    if "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: the largest value it takes
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
