"""The comparison on ImageNet: every criterion on a ResNet-50."""

from pathlib import Path
from types import SimpleNamespace

from common import folders
from common.machine import distributed, environment
from common.studies.sparsity import COLUMNS, Sparsity, Trial
from common.training.loop import Callback, Training

OWN_COLUMNS = [*COLUMNS[: COLUMNS.index("test_accuracy") + 1], "test_top5_accuracy"]
OWN_COLUMNS += COLUMNS[len(OWN_COLUMNS) - 1 :]


class DamagedImages(Callback):
    """Tells all processes after every epoch which images were damaged, and keeps that with the run."""

    def __init__(self, dataset: folders.Folder):
        self.dataset = dataset

    def on_epoch_end(self, training: Training):
        self.dataset.note_damaged(distributed.gathered(self.dataset.damaged))

    def state(self) -> dict:
        return {"paths": sorted(set(distributed.gathered(self.dataset.damaged)))}

    def restore(self, training: Training, state: dict):
        self.dataset.note_damaged(state["paths"])


def load(settings: SimpleNamespace) -> folders.Folder:
    """The images; prints how the processes share a step."""
    settings.dataset = settings.data_dir
    dataset = distributed.everywhere(lambda: folders.load(settings))
    ranks, passes = environment.ranks(), settings.passes
    print(
        f"{len(dataset.train):,} training and {len(dataset.test):,} test images of {len(dataset.classes):,} classes\n"
        f"a step: {settings.batch_size} images in all = {ranks} process{'es' * (ranks > 1)} x {passes} "
        f"pass{'es' * (passes > 1)} of {settings.per_pass}; the learning rate is that of the whole step"
    )
    return dataset


class Imagenet(Sparsity):
    """Every method at every sparsity: imagenet.csv, .md and .png."""

    columns = OWN_COLUMNS

    def __init__(self, settings: SimpleNamespace, dataset: folders.Folder):
        super().__init__(settings, dataset, "resnet50")
        self.more = [DamagedImages(dataset)]
        print(f"learning rate {settings.pruning_learning_rate:g}, {settings.schedule}")

    def final(self, trial: Trial) -> dict:
        final = super().final(trial)
        if final:
            self.dataset.note_damaged(final["DamagedImages"]["paths"])  # where the run was finished before
        return final

    def row(self, final: dict, folder: Path) -> dict:
        return {**super().row(final, folder), "test_top5_accuracy": final["rows"][-1]["test_top5_accuracy"]}

    def write_table(self, rows: list[dict], shown: dict) -> None:
        super().write_table(rows, shown)
        if rows:
            from common.reports.imagenet import write_markdown  # not before: pandas takes its time

            write_markdown(self.table)

    def present(self) -> None:
        from common.reports.imagenet import present

        present(self.settings, self.dataset, self.table)
