"""The one exception a user of the command line should ever see."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what was given, what was expected and what to type."""
