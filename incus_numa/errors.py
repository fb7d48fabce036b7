"""Our exceptions, split by what the caller does about them.

Every error of a library or of the kernel is wrapped into one of these where it appears, `from` the original, so
that the code above the edges handles four cases and no library's names.
"""


class IncusNumaError(Exception):
    """Base of all errors raised on purpose; its text is written for the user."""


class RetryError(IncusNumaError):
    """It may work if tried again soon: the server is busy, the entity changed (412), the instance is starting."""


class ChangedError(RetryError):
    """Somebody else changed it since it was read: read it again, then try again."""


class GoneError(IncusNumaError):
    """What it was about no longer exists: skip it, the next pass will not see it."""


class ReportError(IncusNumaError):
    """It failed and trying again at once will not help: say so once and go on with the rest."""


class ForbiddenKeyError(ReportError):
    """The server refuses the key for this instance, for example in a restricted project."""


class UnreachableError(IncusNumaError):
    """The server cannot be reached or may not be used: exit 3, or reconnect in the daemon."""


class ConfigError(IncusNumaError):
    """Settings or arguments are wrong: exit 2. `problems` lists every problem found, one sentence each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))
