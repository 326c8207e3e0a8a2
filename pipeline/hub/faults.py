"""What a hub's failures mean: who has to act, and one plain line that shows neither a token nor a key."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator

_NO_ROOM = re.compile(r"quota|storage|exceed|too large|no space|payment", re.IGNORECASE)
_LONGEST = 300  # characters of what a server says


def explained(error: Exception, user: str, token: str | None) -> tuple[str, str]:
    """Return who has to act (user, world, or again: nobody, it may pass) and what happened; other errors are raised on."""
    import httpx2
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    chain = list(_causes(error))
    if any(isinstance(cause, LocalTokenNotFoundError) for cause in chain):
        return "user", "no token: set HF_TOKEN, or run `hf auth login`; it is never taken from a flag or a file of ours"
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):
        return "user", "HF_HUB_OFFLINE is set; unset it to push"
    if any(isinstance(cause, HFValidationError) for cause in chain) or "Invalid metadata" in str(error):
        return "user", plain(error, token)
    for cause in chain:
        if (response := getattr(cause, "response", None)) is not None:
            return _refused(int(response.status_code), plain(getattr(cause, "server_message", "") or "", token), user)
        if isinstance(cause, httpx2.TransportError):
            return "again", f"the network fails ({type(cause).__name__}: {plain(cause, token)})"
    if "LFS batch API" in str(error):
        return "world", plain(error, token)
    raise error


def _refused(status: int, text: str, user: str) -> tuple[str, str]:
    said = f"{status}: {text}" if text else str(status)
    if status in (402, 413, 507) or (status == 403 and _NO_ROOM.search(text)):
        return "world", f"the hub has no room for it ({said}): free some there, or ask for more"
    if status == 401:
        return "user", "the hub refuses the token (401): set HF_TOKEN to a valid one, or run `hf auth login`"
    if status == 404 and not user:  # nobody has signed in, so this is a download
        return "user", f"there is no such repository or revision, or the token may not read it ({said})"
    if status in (403, 404):
        whose = f"; the token is that of {user}" if user else ""
        return "user", f"not allowed ({said}): the name is someone else's, or the token may not write{whose}"
    if status in (409, 412):
        return "world", f"somebody else pushed there just now ({status}); look at it, then run the same command again"
    if status in (408, 429) or status >= 500:
        return "again", f"the hub {'asks to wait' if status == 429 else 'fails'} ({said})"
    return "world", f"the hub refuses the request ({said})"


def plain(error: object, token: str | None) -> str:
    """Return what an error or a server says in one line, without addresses, which may be keys, and without the token."""
    text = " ".join(re.sub(r"https?://\S+", "the hub", str(error)).split())
    return (text.replace(token, "…") if token else text)[:_LONGEST]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Retries(logging.Handler):
    """Say what the library's own retries wait for; an upload's address is a key to it and is not shown."""

    def __init__(self, say: Callable[[str], None], token: str | None) -> None:
        super().__init__()
        self.say, self.token, self.reason = say, token, "no answer"

    def emit(self, record: logging.LogRecord) -> None:
        """Say one line for each wait."""
        text = plain(record.getMessage(), self.token)
        if " thrown while requesting " in text:
            self.reason = text.partition(" thrown while requesting ")[0].strip("'")
        elif "etry" in text:
            self.say(f"the hub fails ({self.reason}): {text[0].lower()}{text[1:].rstrip('.')}")
