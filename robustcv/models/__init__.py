"""What is judged: architectures by name in `ARCHITECTURES`; classifiers from runs, torchvision and your own files."""

from robustcv.models.architectures import ARCHITECTURES, build
from robustcv.models.sources import FROM_PYTHON, Loaded, load

__all__ = ["ARCHITECTURES", "FROM_PYTHON", "Loaded", "build", "load"]
