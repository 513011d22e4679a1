"""Everything that bise refuses, it refuses with one of these: the fact, the numbers and the remedy in one line.

BiseError
├── FormatError     a file is not what it claims to be, or is damaged
├── UnsupportedError  a sound file or request that bise does not run (another architecture, a missing backend)
├── ContextError    more tokens than the context holds
├── TemplateError   a chat template refused the messages, or was refused itself
├── RequestError    a request whose values cannot be served (a temperature of NaN, an unknown option)
├── BusyError       as many requests wait as may
└── DownError       the process that computes is not running
"""


class BiseError(Exception):
    """The root: catch it to catch every refusal. `str(error)` is one line for a person."""


class FormatError(BiseError):
    """A file is not what it claims to be, or is damaged: names file, field, value and what was expected."""


class UnsupportedError(BiseError):
    """A sound file or request that bise does not run: names what it is and what bise runs."""


class ContextError(BiseError):
    """A prompt that does not fit: names both numbers. Nothing is ever cut silently."""


class TemplateError(BiseError):
    """A chat template refused the messages or ran out of its limits: carries the template's own message."""


class RequestError(BiseError):
    """A request whose values cannot be served."""


class BusyError(BiseError):
    """As many requests are waiting as may: come back in `retry_after` seconds."""

    def __init__(self, line: str, retry_after: float = 1.0) -> None:
        super().__init__(line)
        self.retry_after = retry_after


class DownError(BiseError):
    """The process that computes is not running: it is starting, or it has died and starts again."""
