"""Checkpoints, the log of epochs, and the agreement of several processes."""

from common.errors import UserError
from common.machine import distributed, environment
from common.training import code
from common.training.callbacks import Meters
from common.training.loop import Callback, Training
from common.training.runs import Run


class SameDecisions(Callback):
    """Stops all processes when their decisions differ: after every step they compare a digest of masks and shapes."""

    def __init__(self):
        self.known: tuple | None = None
        self.digest = distributed.digest()

    def compare(self, training: Training):
        if environment.ranks() == 1:
            return
        known = training.groups.version if training.groups else 0, training.masks
        if self.known is None or known[0] != self.known[0] or known[1] is not self.known[1]:
            self.known, self.digest = known, self.of(training)
        found = distributed.differing(self.digest)
        if found:
            raise UserError(
                f"the processes decided differently in epoch {training.epoch + 1}, step {training.step}: their masks "
                f"and shapes are {', '.join(found)}; the last checkpoint, from before, is kept"
            )

    on_start = on_epoch_start = on_step = compare

    @staticmethod
    def of(training: Training) -> str:
        shapes = str([list(p.shape) for p in training.model.parameters()])
        groups = training.groups.state_dict()["state"].numpy().tobytes() if training.groups else b""
        masks = (mask.cpu().numpy().tobytes() for mask in training.masks)
        return distributed.digest(shapes.encode(), groups, *masks)


class Checkpoints(Callback):
    """A row in the log and a checkpoint after every epoch. Comes after all that fill the row.

    Args:
        others: the callbacks that have a state of their own.
        meters: whose sums, too, a checkpoint within an epoch keeps.
        steps: from one checkpoint within an epoch to the next; 0: none.
    """

    def __init__(self, run: Run, others: list[Callback], meters: Meters, steps: int = 0):
        self.run, self.others, self.meters, self.steps = run, others, meters, steps
        self.rows: list[dict] = []
        self.made_by = code.digest()  # of one that goes on: both digests

    def on_step(self, training: Training):
        if self.steps and training.step % self.steps == 0 and training.step < training.steps_per_epoch:
            self.meters.stop_if_not_finite(training)
            self.save(training, training.step)

    def on_epoch_end(self, training: Training):
        self.rows.append({"epoch": training.epoch, **training.row})
        self.run.save_log(self.rows)  # first: a run that is killed in between writes it again
        self.save(training, 0)

    def save(self, training: Training, step: int):
        distributed.average_statistics(training.model)
        training.parallel.forget()
        self.run.save_checkpoint(
            {
                "config": self.run.config,
                "code": self.made_by,
                "epoch": training.epoch,
                "step": step,
                "groups": training.groups.state_dict() if training.groups else None,
                "model": training.model.state_dict(),
                "optimizer": training.optimizer.state_dict(),
                "scheduler": training.scheduler.state_dict(),
                "rows": self.rows,
                "callbacks": {type(callback).__name__: callback.state() for callback in self.others},
                "meters": self.meters.state() if step else None,
            }
        )

    def resume(self, training: Training, state: dict):
        """Brings a fresh `training` to where the run stopped when `state` was kept."""
        before = state.get("code") or "unknown"
        self.made_by = before if before == self.made_by else f"{before}+{self.made_by}"
        training.epoch, training.step, self.rows = state["epoch"], state.get("step", 0), state["rows"]
        if training.groups:
            training.groups.restore(training.model, state["groups"])
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.scheduler.load_state_dict(state["scheduler"])
        for callback in self.others:
            callback.restore(training, state["callbacks"][type(callback).__name__])
        if training.step:
            self.meters.restore(training, state["meters"])
