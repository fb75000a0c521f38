"""Names from files, models and classes, made safe to show: nothing that XML forbids or that turns the reading."""

import json
import re
import unicodedata
from typing import Any

# control characters but tab and line feed, lone surrogates, no characters at all; marks that turn the direction
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def shown(value: Any) -> Any:
    """Replace what must not reach the page in a text by U+FFFD; leave markup of ours, and what is no text."""
    return _UNSAFE.sub("\ufffd", value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def shortened(name: str, most: int = 13) -> str:
    """Leave out the middle of a long name: what tells names apart is often at the end; wide letters count twice."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in name)
    most = most if wide < len(name) / 2 else 1 + most // 2
    return name if len(name) <= most else f"{name[: most - 4]}…{name[-3:]}"


def shown_json(value: Any) -> str:
    """Write JSON whose texts are safe to show."""

    def safe(each: Any) -> Any:
        if isinstance(each, dict):
            return {key: safe(below) for key, below in each.items()}
        return [safe(below) for below in each] if isinstance(each, list) else shown(each)

    return json.dumps(safe(value))
