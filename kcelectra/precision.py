"""The floating-point format that products are computed in; weights stay float32 in any."""

import platform
from pathlib import Path

import torch
from transformers.utils import is_torch_tpu_available

from kcelectra.errors import InputError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def choose_precision(precision: str = "auto", *, use_cpu: bool = False) -> str:
    """Return a precision, and for auto the fastest of the others that the device computes in hardware.

    Args:
        precision: one of `PRECISIONS`.
        use_cpu: compute on the CPU even where there is something else.

    Raises:
        InputError: the precision is unknown, or float16 on a CPU, which scales no gradients: small ones would be lost.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; give --precision and one of {', '.join(PRECISIONS)}")
    if precision == "float16" and (use_cpu or not torch.accelerator.is_available()):
        raise InputError("precision is float16, which is for GPUs; give --precision auto, bfloat16 or float32")
    if precision != "auto":
        return precision
    if torch.cuda.is_available() and not use_cpu:
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if is_torch_tpu_available() and not use_cpu:
        return "bfloat16"
    return "bfloat16" if _is_bfloat16_fast_on_cpu() else "float32"


def _is_bfloat16_fast_on_cpu() -> bool:
    """Say whether products of bfloat16 are faster than those of float32, which an instruction for them does not say.

    AMX multiplies 8 times as fast as float32, AVX512-BF16 of AMD twice (assumption: by their manuals), that of Intel
    not (measured, Xeon of 2023 without AMX: bfloat16 trains 0.7 times as fast; products 0.5 to 0.7 times).
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    cpus = Path("/proc/cpuinfo")
    is_amd = cpus.exists() and "AuthenticAMD" in cpus.read_text()
    return torch.cpu._is_amx_tile_supported() or (is_amd and torch.cpu._is_avx512_bf16_supported())
