"""Training functions as users write them: right ones, and ones that go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def train(
    module: nn.Module, data: Any, *, source: nn.Module, kept: Path, seed: int, progress: Any, epochs: int = 2
) -> Any:
    """Learns from the source model, and keeps a checkpoint per epoch."""
    assert module.training
    assert not source.training
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for epoch in range(epochs):
        for batch in data.batches(32, seed=seed, epoch=epoch):
            with torch.no_grad():
                wanted = source(**batch.feeds)
            loss = nn.functional.mse_loss(module(**batch.feeds), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.save(module.state_dict(), kept / "last.pt")
        progress(f"epoch {epoch}: loss {float(loss.detach()):.4g}", (epoch + 1) / epochs)
    return module


def nothing(module: nn.Module, data: Any, **rest: Any) -> None:
    train(module, data, epochs=1, **rest)


def averaged(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    """Looks at what it trained, and returns the mean with where it began."""
    first = [parameter.detach().clone() for parameter in module.parameters()]
    train(module, data, epochs=1, **rest)
    with torch.no_grad():
        module.eval()(**next(iter(data.batches(32))).feeds)
        for parameter, before in zip(module.parameters(), first, strict=True):
            parameter.copy_((parameter + before) / 2)
    return module


def idle(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    return module


def wrapped(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    train(module, data, epochs=1, **rest)
    return nn.DataParallel(module)


def other(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    module.head = nn.Linear(module.head.in_features, 4, bias=False)  # type: ignore[arg-type, union-attr]
    return module


def raises(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    raise ValueError("no luck today")


def not_finite(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    return module


def tricky(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    """Changes what no state dict holds."""
    train(module, data, epochs=1, **rest)
    module.register_forward_hook(lambda module, args, result: result * 2)
    return module


def accelerated(
    module: nn.Module, data: Any, *, source: nn.Module, kept: Path, seed: int, progress: Any, epochs: int = 2
) -> Any:
    """Learns in as many processes as call it, joined by accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator()
    whole = torch.optim.AdamW(module.parameters(), lr=1e-2)
    joined, optimizer = accelerator.prepare(module, whole)
    for epoch in range(epochs):
        for batch in data.batches(16, seed=seed, epoch=epoch):
            with torch.no_grad():
                wanted = source(**batch.feeds)
            loss = nn.functional.mse_loss(joined(**batch.feeds), wanted)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        mean = float(accelerator.reduce(loss.detach(), "mean"))
        progress(f"epoch {epoch}: loss {mean:.4g}, {accelerator.num_processes} processes", (epoch + 1) / epochs)
    return accelerator.unwrap_model(joined)


def second_raises(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator()
    if accelerator.process_index == 1:
        print("the second is about to give up")
        raise ValueError("no luck in the second")
    accelerator.wait_for_everyone()
    return module


def second_dies(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    import os
    import signal
    import sys

    from accelerate import Accelerator

    accelerator = Accelerator()
    if accelerator.process_index == 1:
        print("the second is about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    accelerator.wait_for_everyone()
    return module


def halved(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    return module.half()


def short(module: nn.Module, data: Any) -> nn.Module:
    return module


def loses(module: nn.Module, data: Any, **rest: Any) -> nn.Module:
    Path("/nowhere/data.csv").read_text()
    return module
