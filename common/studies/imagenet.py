"""The comparison on ImageNet: every criterion on a ResNet-50."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from common import folders
from common.machine import distributed, environment
from common.studies.accumulation import Accumulation
from common.studies.sparsity import COLUMNS, Sparsity, Trial
from common.training.loop import Callback, Training

OWN_COLUMNS = [*COLUMNS]
OWN_COLUMNS.insert(COLUMNS.index("test_accuracy") + 1, "test_top5_accuracy")


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


class ImagenetUnits(Accumulation):
    """The accumulation study of images that are read while the network trains."""

    def __init__(self, settings: SimpleNamespace, dataset: folders.Folder):
        super().__init__(settings, dataset, "resnet50")

    def make(self, trial, changes: Sequence[Callback]) -> dict:
        final = super().make(trial, [*changes, DamagedImages(self.dataset)])
        self.dataset.note_damaged(final.get("DamagedImages", {}).get("paths", ()))
        return final

    def present(self) -> None:
        from common.reports.imagenet import tell_damaged

        super().present()
        tell_damaged(self.dataset)


class Imagenet(Sparsity):
    """Every method at every sparsity: imagenet.csv, .md and .png."""

    columns = OWN_COLUMNS

    def __init__(self, settings: SimpleNamespace, dataset: folders.Folder):
        super().__init__(settings, dataset, "resnet50")
        self.more = [DamagedImages(dataset)]
        print(f"learning rate {settings.pruning_learning_rate:g}, {settings.schedule}")

    def adds(self, trial: Trial, final: dict, folder: Path) -> tuple[list[dict]]:
        ((row,),) = super().adds(trial, final, folder)
        return ([{**row, "test_top5_accuracy": final["rows"][-1]["test_top5_accuracy"]}],)

    def make(self, trial: Trial, changes: Sequence[Callback]) -> dict:
        final = super().make(trial, changes)
        if final:
            self.dataset.note_damaged(final["DamagedImages"]["paths"])  # where the run was finished before
        return final

    def write(self, tables: dict[str, list[dict]], made: dict) -> None:
        from common.reports.imagenet import write_markdown  # not before: pandas takes its time

        super().write(tables, made)
        write_markdown(self.table)

    def present(self) -> None:
        from common.reports.imagenet import present

        present(self.settings, self.dataset, self.table)
