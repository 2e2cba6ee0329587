"""Errors that the user sees as one sentence, in kinds that a program can distinguish."""


class DisaError(Exception):
    """A problem that the user can fix; the message says what is wrong, where, and what to do.

    Raised directly only if none of the kinds below fits, for example if a file cannot be written.
    """


class InvalidRequest(DisaError):
    """An option, a condition or an input cannot be fulfilled; another request can."""


class DamagedFile(DisaError):
    """A file is cut off, altered or of another kind: it must be downloaded or made again."""


class OutOfMemory(DisaError):
    """The device or the machine does not have enough memory; a smaller request may fit."""


class EngineError(DisaError):
    """An engine could not be loaded or built, or failed while it ran."""


class MissingDependency(DisaError):
    """An optional package is required but not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the package {package} is needed for this and is not installed: "
            f"run `pip install 'disa[{extra}]'`"
        )
        self.package = package
        self.extra = extra
