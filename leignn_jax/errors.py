"""What can go wrong with a user's input, each as a class of its own; all are ``LeignnError`` and ``ValueError``."""


class LeignnError(ValueError):
    """Base class of the errors raised on purpose by leignn_jax."""


class StructureError(LeignnError):
    """A structure that no energy can be computed for: NaN positions, a singular cell, overlapping atoms."""


class ConfigError(LeignnError):
    """A setting that is unknown or out of range."""


class ElementError(LeignnError):
    """A structure holds an element that the potential has not seen."""


class FileFormatError(LeignnError):
    """A file that is truncated, edited, unsafe to read or made for something else."""


class DataError(LeignnError):
    """A set of frames that can't be trained on or compared with: labels missing, not finite or in the wrong unit."""


class TrainingError(LeignnError):
    """A training run that can't go on: the loss is no number, the disk is full, the run folder is another run's."""


class SimulationError(LeignnError):
    """A simulation that can't go on: it blew up, the disk is full, its files are another run's."""


class ProcessError(LeignnError):
    """Processes that can't go on together: one of them failed, did not come, or differs from the others."""


class DownloadError(LeignnError):
    """A file that can't be downloaded, or that is not the one that was published."""
