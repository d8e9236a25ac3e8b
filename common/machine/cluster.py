"""A study on a cluster: JOBS workers as a job array, each with the study's ordinary command, through submitit.

Nothing here imports torch: the machine that submits trains nothing.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.errors import UserError
from common.machine import environment

ROOT = Path(__file__).parent.parent.parent
PREEMPTED = getattr(signal, "SIGUSR2", None)  # what submitit has Slurm send, at the time limit too
REQUEUES = 1000  # times that a worker may reach its time limit
GRACE = 120  # seconds for Slurm to say whether a job that got SIGTERM is to be requeued


class Worker:
    """What one job runs: a script's command, as a process. Preempted or at its time limit that gets a SIGTERM, at which
    it goes back to its last checkpoint, and the job is requeued.

    After a bare SIGTERM the job waits to be told or killed: one that ends by itself is not requeued.
    """

    def __init__(self, words: list[str]):
        self.words = words

    def __call__(self) -> None:
        own = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process, came = subprocess.Popen([sys.executable, *self.words], env=own, start_new_session=True), []

        def stop(number: int, _):
            came.append(number)
            process.terminate()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, PREEMPTED)}
        status = process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        if PREEMPTED in came:
            before[PREEMPTED](PREEMPTED, None)  # does not return
        if signal.SIGTERM in came:
            time.sleep(GRACE)
        if status:
            raise SystemExit(abs(status))

    def checkpoint(self):
        """What submitit runs once the job is back."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def minutes(limit: str) -> int:
    """A time limit as sbatch takes it (minutes, minutes:seconds, hours:minutes:seconds, days-hours:...).

    Raises:
        UserError: for any other.
    """
    days, _, rest = limit.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        if days:
            hours, least, seconds = parts + [0] * (3 - len(parts))
        elif len(parts) == 3:
            hours, least, seconds = parts
        else:
            (hours, least, seconds) = (0, *parts, *[0] * (2 - len(parts)))
        return max(1, 24 * 60 * int(days or 0) + 60 * hours + least + (seconds > 0))
    except ValueError:
        raise UserError(f"SLURM: got time={limit}, takes minutes, hours:minutes:seconds or days-hours") from None


def submit(script: Path, words: list[str], values: dict) -> int:
    """Submits the workers and returns the exit status; `local` waits for them.

    words: the command line. values: the constants, in lower case.

    Raises:
        UserError: without submitit, without the cluster, or where it refuses.
    """
    if environment.ranks() > 1:
        raise UserError("CLUSTER: takes none under torchrun; docs/cluster.md has a Slurm script for it")
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise UserError("CLUSTER: needs submitit; get it with: pip install submitit") from None
    worker = Worker([str(script.resolve()), *words, "--cluster", "none", "--jobs", "1"])
    logs = Path(values["run_dir"]).resolve() / "cluster"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = dict(option.partition("=")[::2] for option in values["slurm"])
    limit, gpus = minutes(options.pop("time", "24:00:00")), options.pop("gpus-per-node", "0")
    try:
        executor = AutoExecutor(logs, cluster=values["cluster"], slurm_max_num_timeout=REQUEUES)
        executor.update_parameters(name=script.stem, timeout_min=limit, gpus_per_node=int(gpus))
        if values["cluster"] == "slurm":
            executor.update_parameters(slurm_additional_parameters={k: v or None for k, v in options.items()})
        jobs = executor.submit_array([worker] * values["jobs"])
    except (RuntimeError, OSError) as error:  # no srun; a partition that is not there
        raise UserError(f"CLUSTER: {' '.join(str(error).split())}") from None
    print(f"submitted: {', '.join(job.job_id for job in jobs)}; what they say: {logs}")
    if values["cluster"] == "slurm":
        print("the last one to finish writes the tables and figures; the same command makes up for what is missing")
        return 0
    failed = [job for job in jobs if job.exception()]
    for job in failed:
        print(f"error: job {job.job_id} did not end well: {job.paths.stderr}", file=sys.stderr)
    return 2 if failed else 0
