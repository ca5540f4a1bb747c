"""Text that is Unicode: every tokenizer reads it, and every file holds it."""

from __future__ import annotations

from zoo.errors import RequestError, ZooError


def require_unicode(text: str, what: str, *, error: type[ZooError] = RequestError) -> None:
    """Refuse half characters (lone surrogates), which Python and JSON can hold and no tokenizer reads.

    Args:
        what: what the text is, as a sentence begins: "The prompt".

    Raises:
        error: says where the first one is.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as found:
        raise error(f"{what} holds half a character at position {found.start}, which is not Unicode text.") from None
