"""Errors of this package's own; everything else is raised with torch's types."""


class UnsupportedProblem(ValueError):
    """The backend asked for cannot take this call; the text says why."""


class BackendUnavailable(RuntimeError):
    """The backend asked for does not exist on this machine; the text says why and what mends it."""
