"""How often is an image classifier right, how easily is it broken, and what does it look at?

``import robustcv as rc`` costs nothing; torch is imported when the first verb is called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustcv.api import audit as audit
    from robustcv.api import compare as compare
    from robustcv.api import doctor as doctor
    from robustcv.api import explain as explain
    from robustcv.api import harden as harden
    from robustcv.api import load_classifier as load_classifier
    from robustcv.api import load_images as load_images
    from robustcv.api import train as train
    from robustcv.api import tune as tune
    from robustcv.api import verify as verify
    from robustcv.classifier import Classifier as Classifier
    from robustcv.errors import UserError as UserError
    from robustcv.running import Run as Run

__version__ = "0.1.0"

_HOMES = {"Classifier": "robustcv.classifier", "UserError": "robustcv.errors", "Run": "robustcv.running"}
__all__ = [
    "Classifier",
    "Run",
    "UserError",
    "audit",
    "compare",
    "doctor",
    "explain",
    "harden",
    "load_classifier",
    "load_images",
    "train",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'robustcv' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "robustcv.api")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
