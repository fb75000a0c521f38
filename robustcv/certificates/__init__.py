"""What is proved rather than tried: lower bounds of robust accuracy, by name in `CERTIFICATES`."""

from collections.abc import Callable
from typing import Any

from robustcv.certificates.bounds import bounds
from robustcv.certificates.smoothing import smoothing

CERTIFICATES: dict[str, Callable[..., Any]] = {"bounds": bounds, "smoothing": smoothing}
