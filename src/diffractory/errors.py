"""The one exception that is shown to users as a sentence instead of a traceback."""


class InputError(Exception):
    """Something the user gave is wrong: the message says what, where and what to do about it."""
