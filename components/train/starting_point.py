"""Where training starts: at its own newest whole checkpoint, or at that of the run that it continues."""

from __future__ import annotations

from components.errors import ConfigError, DataError
from components.model import checkpoints
from components.storage.base import Storage
from components.train.processes.collectives import first_problem
from components.train.request import Request


def find_checkpoint(
    run: Storage, training: str, rank: int, world: int
) -> tuple[checkpoints.Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, and why newer ones were skipped; the ranks share the work of checking."""
    skipped: list[str] = []
    for candidate in checkpoints.candidates(run, training):
        own_problem = None
        try:
            if isinstance(candidate, DataError):
                raise candidate
            candidate.verify(candidate.parts[rank::world])
        except DataError as error:
            own_problem = str(error)
        problem = first_problem(own_problem)
        if problem is None and not isinstance(candidate, DataError):
            return candidate, skipped
        skipped.append(str(problem))
    return None, skipped


def checkpoint_of_earlier_run(request: Request, rank: int, world: int) -> checkpoints.Checkpoint:
    """Return the checkpoint that ``train.continued`` names; the ranks share the work of checking it.

    Raises:
        ConfigError: If the data are encoded otherwise than those that it was trained on.
        DataError: If it does not exist any more, is another one by now, or is damaged.
    """
    continued = request.config.continued
    encoding = request.dataset.url.rpartition("/")[2]
    if encoding != continued.encoding:
        raise ConfigError(
            f"run {continued.run} was trained on data of encoding {continued.encoding}, and this run has {encoding}: "
            "the autoencoder, the text encoder, or how images are cropped or captions are read is another. Start a new "
            "run instead"
        )
    problem = None
    try:
        checkpoint = checkpoints.open_checkpoint(request.workdir.child(f"runs/{continued.run}"), continued.step)
        if checkpoint.digest != continued.checkpoint:
            raise DataError(f"it is {checkpoint.digest[:12]} by now, not {continued.checkpoint[:12]}")
        checkpoint.verify(checkpoint.parts[rank::world])
    except DataError as error:
        problem = str(error)
    if (problem := first_problem(problem)) is not None:
        raise DataError(
            f"the checkpoint of step {continued.step} of run {continued.run}, which this run continues, cannot be "
            f"used: {problem}. Continue {continued.run} from what it has (darkroom run --continue)"
        )
    return checkpoint
