"""The one error type that a command turns into a single line and exit status 2."""

__all__ = ["UserError"]


class UserError(Exception):
    """What the user asked for cannot be done; the message says why and what to do, in one line."""
