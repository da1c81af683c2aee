"""The exceptions specfast raises for mistakes a user can mend; each also is the built-in type one would expect."""


class SpecfastError(Exception):
    """Base of every error raised on purpose by specfast."""


class DataError(SpecfastError, ValueError):
    """A file or its metadata cannot be used as it is; the message names the file, what it holds and the cure."""


class CheckpointError(SpecfastError, ValueError):
    """A checkpoint does not fit; the message names every missing, unexpected or misshapen key."""
