"""One of several processes that train together: `torchrun -m optkit.formats.torch_training.rank FOLDER`."""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, StepError
from optkit.formats.torch_training.ranks import JOB, PROGRESS, RETURNED
from optkit.plugin import need


def main(folder: Path) -> int:
    """Train as the job in the folder says, and leave there what came of it; the exit code."""
    rank = int(os.environ["RANK"])
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        _train(folder, rank)
    except BaseException as error:  # whatever the user's function and its engine raise is the parent's to tell
        own = error if isinstance(error, OptkitError) else StepError(
            f"{type(error).__name__}: {error}", subject="with.call", hint="call it by hand in Python")  # fmt: skip
        record = {"rank": rank, "at": time.time(), "error": own.to_json()}
        (folder / f"{rank}.error.json").write_text(json.dumps(record), encoding="utf-8")
        import traceback

        traceback.print_exc()
        return 1
    return 0


def _end_with_the_parent() -> None:
    """Nobody writes to the standard input: it ends when the process that started all this does."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _train(folder: Path, rank: int) -> None:
    from optkit.formats.torch import model as torch_model
    from optkit.formats.torch.modes import evaluate
    from optkit.formats.torch_training import checkpoint as torch_checkpoint
    from optkit.formats.torch_training.data import TrainingData
    from optkit.formats.torch_training.options import BATCH_SIZE
    from optkit.formats.torch_training.user_training import Call, answers, called

    torch = need("torch")
    job = pickle.loads((folder / JOB).read_bytes())
    call: Call = job["call"]
    device = "cpu" if job["device"] == "cpu" else f"cuda:{os.environ['LOCAL_RANK']}"
    if device != "cpu":
        torch.cuda.set_device(device)
    model = torch_model.load(call.artifact.path, device=device)
    data = TrainingData(None, call.data, call.inputs, held_out=call.held_out, seed=call.seed, device=device,
                        stack=call.stack, share=(rank, int(os.environ["WORLD_SIZE"])))  # fmt: skip
    told = (folder / PROGRESS).open("a", encoding="utf-8", buffering=1) if rank == 0 else None

    def progress(text: str, fraction: float | None) -> None:
        if told is not None:
            told.write(json.dumps([text, fraction]) + "\n")

    # Another state of the generators in each process: what is dropped at random differs, the data's order does not.
    with torch_checkpoint.reproducible(call.seed + rank, job["threads"], device):
        trained = called(call, model.source.module, data, device, progress)
    (folder / f"{rank}.digest").write_text(_digest(trained))
    if rank == 0:
        state = {name: value.detach().to("cpu", copy=True) for name, value in trained.state_dict().items()}
        evaluate(trained)
        given = answers(model, trained, next(data.held_out_batches(BATCH_SIZE)))
        torch.save({"state": state, "answers": {name: value.cpu() for name, value in given.items()}}, folder / RETURNED)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _digest(module: Any) -> str:
    """sha256 over the parameters, in order; buffers (running means) may differ between processes."""
    whole = sha256()
    for parameter in module.parameters():
        whole.update(parameter.detach().cpu().contiguous().flatten().view(need("torch").uint8).numpy().tobytes())
    return whole.hexdigest()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
