"""Errors that reach the user as one sentence."""


class DisaError(Exception):
    """Something the user can mend; the message says what is wrong, where, and what to do."""


class MissingDependency(DisaError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the package {package} is needed for this and is not installed: "
            f"run `pip install 'disa[{extra}]'`"
        )
        self.package = package
        self.extra = extra
