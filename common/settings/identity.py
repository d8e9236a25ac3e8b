"""Which constants a study reads, and which tell one run from another: all of them but for a short list."""

from types import SimpleNamespace

from common import names

WATCHING = ("learning_rates", "gradient_clip", "noise_std")  # read where units are watched, and nothing is pruned
PRUNING = ("methods", "sparsities", "demp_strengths", "pruning_learning_rate", "warmup", "settle")  # where it is
# What cannot change a result: places, the division of the work, and what only says which runs are made.
CHANGES_NOTHING = {"data_dir", "output_dir", "base_dir", "run_dir", "workers", "micro_batch", "passes", "per_pass"}
CHANGES_NOTHING |= {"checkpoint_steps", "script", "study", "protocol", "methods", "extend", "again", "jobs", "formats"}
CHANGES_NOTHING |= {"cluster", "slurm", "given", "silence"}
# Of these a run has one value, under a name of its own; and the network says its part itself.
OF_THE_RUN = {"seeds", "regularization", "sparsities", "demp_strengths", "pruning_learning_rate"}
OF_THE_RUN |= {"network", "width", "stem"}
# Constants of pruning methods: they tell apart the runs of those that read them (`Method.constants`).
OF_METHODS = {"warmup", "settle", "patience", "definition"}


def is_read(name: str, study: str) -> bool:
    """Whether the study looks at the constant, given in lower case; the figures of all studies look at PATIENCE."""
    if name in WATCHING:
        return study not in names.MEASURES
    if name in PRUNING:
        return study in names.MEASURES
    if study in names.SWEEPS and name == names.SWEEPS[study].column:
        return False  # it has several values, under another name
    return not any(sweep.constant == name and study != swept for swept, sweep in names.SWEEPS.items())


def conditions(settings: SimpleNamespace) -> dict:
    """The constants that a study's runs have in common and their results depend on, as JSON gives them back.

    Every constant is among them by default, one that a script has of its own too. Those of pruning methods are added
    for each method (`studies.sparsity`).
    """
    lists = {sweep.constant for sweep in names.SWEEPS.values()}
    left_out = CHANGES_NOTHING | OF_THE_RUN | OF_METHODS | lists
    found = {"device": settings.device.type}
    for name, value in sorted(vars(settings).items()):
        swept = settings.study in names.SWEEPS and name == names.SWEEPS[settings.study].column
        if name not in left_out | {"device"} and (swept or is_read(name, settings.study)):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found
