"""Text from others, made safe to show."""


def printable(raw: bytes) -> str:
    """Decode UTF-8 and replace whatever a terminal could obey with `?`.

    Control, format and bidirectional characters, line separators and bytes
    that are no UTF-8 become `?`, as serialmail did for all but ASCII.
    """
    text = raw.decode("utf-8", "replace")
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in text)
