"""What can go wrong with a user's input, each as a class of its own; all are ``LeignnError`` and ``ValueError``."""


class LeignnError(ValueError):
    """Base class of the errors raised on purpose by leignn_jax."""


class StructureError(LeignnError):
    """A structure that no energy can be computed for: NaN positions, a singular cell, overlapping atoms."""


class ConfigError(LeignnError):
    """A model setting that is unknown or out of range."""


class ElementError(LeignnError):
    """A structure holds an element that the potential has not seen."""


class FileFormatError(LeignnError):
    """A potential file or checkpoint that is truncated, edited or made for another model."""
