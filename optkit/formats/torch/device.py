"""The device a torch model runs on."""

from __future__ import annotations

from optkit.errors import UnavailableError
from optkit.plugin import need


def check_device(device: str) -> None:
    """Raises UnavailableError unless torch can run on `device`: "cpu", "cuda" or "cuda:N"."""
    torch = need("torch")
    if device == "cpu":
        return
    kind, _, index = device.partition(":")
    if kind != "cuda":
        raise UnavailableError(f"the torch runner knows no device {device!r}", hint="cpu, cuda or cuda:1")
    if torch.version.cuda is None:
        raise UnavailableError(
            f"device {device!r} was asked for, but torch {torch.__version__} is built for the CPU alone",
            hint="device cpu, or install a CUDA build of torch",
        )
    if not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count():
        raise UnavailableError(
            f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices",
            hint="device cpu, or check nvidia-smi",
        )
