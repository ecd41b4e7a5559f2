"""The error that every file which cannot be used ends in, with a message that is short and safe to log."""

MOST_CHARACTERS = 1000  # in a message


class UNetFileError(ValueError):
    """A file cannot be used as a UNet. The message says what was found, what was expected and what to do.

    Names in a file may be of any length and content: a message has at most 1,000 characters, control characters escaped.
    """

    def __init__(self, message: str):
        super().__init__(printable(message, MOST_CHARACTERS))


def shorten(value: object, most: int = 100) -> str:
    """`value` as text of at most `most` characters; the middle of a longer one is left out."""
    text = str(value)
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[:most - 1 - end]}…{text[-end:]}"


def printable(value: object, most: int = 100) -> str:
    """`shorten` with control characters escaped, for logs and pages."""
    return shorten("".join(char if char.isprintable() else ascii(char)[1:-1] for char in shorten(value, most)), most)
