"""The guidance scale over the AR iterations."""

from enum import StrEnum


class GuidanceSchedule(StrEnum):
    """How the guidance scale grows over the AR iterations."""

    LINEAR = "linear"
    CONSTANT = "constant"
