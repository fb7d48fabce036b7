"""Whether a text is JSON at all: told before what is in it is judged, as half a file looks like a wrong one. Pure.

Called by the readers of documents that people write or cut short.
"""

from __future__ import annotations

import re

import msgspec

_AT_BYTE = re.compile(r" \(byte ([0-9]+)\)$")
_LEAD, _BEHIND = "JSON is malformed: ", "trailing characters"


def find_fault(text: str | bytes) -> str | None:
    """Why a text is no JSON and where, as the end of a sentence; None if it is JSON."""
    try:
        raw = text.encode() if isinstance(text, str) else text
        msgspec.json.decode(raw)
    except UnicodeError:
        return "not JSON: expected text in UTF-8"
    except RecursionError:
        return "not JSON that can be read: it is nested too deeply"
    except msgspec.DecodeError as error:
        said = str(error)
        at_byte = _AT_BYTE.search(said)
        if at_byte is None:
            return f"not JSON: it ends too early, {_place(raw, len(raw))}"
        what, offset = said[: at_byte.start()].removeprefix(_LEAD), int(at_byte[1])
        # Of what is behind the end the decoder has read one character already.
        return f"not JSON: {what}, {_place(raw, offset - (what == _BEHIND))}"
    return None


def _place(raw: bytes, offset: int) -> str:
    """Line and column of a byte, both counted from 1."""
    before = raw[:offset]
    return f"at line {before.count(10) + 1}, column {offset - before.rfind(10)}"
