"""The errors that handlens raises on purpose.

Each message says what was given, what was wanted and what to do about it. Everything derives from `HandlensError`, so a
caller can catch one class; the command line prints the message alone and exits with code 2.
"""


class HandlensError(Exception):
    """Anything that handlens refuses to do, with a message for a person."""


class InputError(HandlensError, ValueError):
    """Messages or options that cannot be used as they were given."""


class ImageError(InputError):
    """An image that is damaged, too large, of a shape or of a format that is not accepted."""


class ContextError(InputError):
    """A request that needs more tokens than the context has."""


class ModelFileError(HandlensError):
    """A model file that is damaged, hostile, incomplete, or that does not fit the file it was given with."""
