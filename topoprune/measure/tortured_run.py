"""The small run that the torture test kills: how a process starts it, and how it is killed."""

import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from topoprune import study
from topoprune.files import FileError, FileWarning
from topoprune.measure.saved_state import temporary_files
from topoprune.study import workers
from topoprune.study.trial import Dense, Trial
from topoprune.training import Recipe

RECORDS_NAME = "torture"
RECORDS_FILE = f"{RECORDS_NAME}.jsonl"

SHARES = {"start-up": 0.12, "work": 0.63, "write": 0.25}
"""Share of the kills before the imports are done, at any time after them, and while a file is being written."""

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["topoprune.study.workers", "topoprune.fitness", "topoprune.genetic", "sklearn.datasets", "sklearn.model_selection"]
)


class TortureError(RuntimeError):
    """The tortured process ended by itself, with an error."""


class Kill(NamedTuple):
    """A kill to come: when (see `SHARES`), and its delay in [0, 1) as a share of the longest delay."""

    moment: str
    delay: float


class Outcome(NamedTuple):
    """How a process ended: whether its imports were done, and whether it was killed before it had finished."""

    imported: bool
    killed: bool


@dataclass(frozen=True)
class TorturedRun:
    """A dense network and a trial that prunes it, carried out by other processes.

    Attributes:
        folder: of the cache, the results, and what the process writes to stderr.
        epochs: of dense training and of fine-tuning.
    """

    folder: Path
    epochs: int

    @property
    def specs(self) -> list[Dense | Trial]:
        """The dense network and the trial."""
        return [self.trial.dense, self.trial]

    @property
    def trial(self) -> Trial:
        """A topological trial on the digits. Its recipe uses Muon too, so that both optimizers have a state."""
        recipe = Recipe(epochs=self.epochs, batch=128, peak_rate=0.1, muon_rate=0.05)
        dense = Dense("digits", "vgg16", 1 / 16, 0, recipe)
        return Trial(dense, "topological", 0.5, 0, recipe, {"population": 12, "generations": 6})

    def emptied(self) -> "TorturedRun":
        """The same run, its folder emptied."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def finish(self) -> None:
        """Let a process carry the run to its end.

        Raises:
            TortureError: the process ended with an error.
        """
        process = self.start()
        process.join()
        self.was_killed(process.exitcode)

    def start(self, file_limit: int | None = None) -> ForkServerProcess:
        """Fork a process whose imports are done; `file_limit` is the largest size of a file in bytes."""
        process = FORKSERVER.Process(target=_silently_carry_out, args=(self, file_limit))
        process.start()
        return process

    def run_and_kill(self, kill: Kill | None, longest: float) -> Outcome:
        """Start the run and kill its process.

        Args:
            kill: None lets the process come to its end.
            longest: seconds of a whole run, about; delays are shares of it.
        """
        if kill is not None and kill.moment == "start-up":
            return self._kill_new_interpreter(2.0 + 6.0 * kill.delay)
        process = self.start()
        if kill is not None:
            process.join((0.3 if kill.moment == "work" else 0.4) * longest * kill.delay)
            if kill.moment == "write":
                known = self.temporary_files()
                while process.is_alive() and self.temporary_files() <= known:
                    pass  # a write takes milliseconds: no time to sleep
            process.kill()
        process.join()
        return Outcome(True, self.was_killed(process.exitcode))

    def temporary_files(self) -> set[Path]:
        """See `saved_state.temporary_files`."""
        return temporary_files(self.folder, self.specs, RECORDS_FILE)

    def stderr(self) -> str:
        """What the last process wrote to stderr."""
        path = self.folder / "stderr"
        return path.read_text() if path.exists() else ""

    def was_killed(self, status: int | None) -> bool:
        """Whether a process of this exit status was killed; else it has finished.

        Raises:
            TortureError: it ended with an error or a warning of its own.
        """
        if status == -signal.SIGKILL:
            return True
        if status or FileWarning.__name__ in self.stderr():
            raise TortureError(f"the process ended with status {status}: {self.stderr().strip()[-2000:]}")
        return False

    def _kill_new_interpreter(self, seconds: float) -> Outcome:
        command = [sys.executable, "-m", "topoprune.measure.torture", "--once", str(self.folder)]
        with subprocess.Popen(
            [*command, "--epochs", str(self.epochs)], text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
            output, _ = process.communicate()
            return Outcome(output == "ready\n", self.was_killed(process.returncode))


def random_kills(seed: int) -> Iterator[Kill]:
    """An endless series of kills.

    >>> [kill.moment for kill, _ in zip(random_kills(0), range(4))]
    ['write', 'work', 'work', 'write']
    """
    generator = random.Random(seed)
    while True:
        (moment,) = generator.choices(list(SHARES), list(SHARES.values()))
        yield Kill(moment, generator.random())


def carry_out(run: TorturedRun, file_limit: int | None = None) -> int:
    """Be the tortured process: print "ready", carry out the run, return the exit status."""
    print("ready", flush=True)
    os.dup2(os.open(run.folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ.update(TOPOPRUNE_CACHE=str(run.folder / "cache"), TOPOPRUNE_RESULTS=str(run.folder / "results"))
    os.environ.pop("TOPOPRUNE_NO_RUN", None)
    workers.begin_work()
    tqdm.set_lock(threading.RLock())  # tqdm's own lock is a semaphore, which a killed process leaves behind
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    try:
        study.records(RECORDS_NAME, run.specs, "cpu")
    except (FileError, study.RunError) as error:
        print(f"topoprune: error: {error}", file=sys.stderr)
        return 2
    return 0


def _silently_carry_out(run: TorturedRun, file_limit: int | None) -> None:
    sys.stdout = open(os.devnull, "w")
    sys.exit(carry_out(run, file_limit))
