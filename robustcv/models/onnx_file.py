"""ONNX files (extra ``onnx``): written with their logits checked, and read as classifiers that give no gradients."""

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustcv.classifier import frozen
from robustcv.errors import UserError, first_line, missing_extra

TOLERANCE = 1e-4  # of the largest logit


class OnnxClassifier(nn.Module):
    """A classifier that runs in onnxruntime: logits, but no gradients.

    Parameters
    ----------
    path
        The file: one input, images `n c h w` in [0, 1]; the first output is taken for logits `n k`.

    Raises
    ------
    UserError
        If onnxruntime is not installed or cannot read the file.
    """

    black_box = True
    file: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        beside = path.with_name(path.name + ".data")  # where exporters put large weights
        data = path.read_bytes() + (beside.read_bytes() if beside.is_file() else b"")
        self.register_buffer("file", torch.frombuffer(bytearray(data), dtype=torch.uint8))  # so that a hash covers it
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes, one for each kind of defect
            raise UserError(
                "RCV-E092",
                f"{path} cannot be read as an ONNX file",
                first_line(error, 160),
                "export it again",
            ) from error
        self._input = self._session.get_inputs()[0]
        batch = self._input.shape[0]
        self._at_once = batch if isinstance(batch, int) and batch > 0 else None

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Compute logits; not differentiable."""
        given = images.detach().cpu().float().numpy()
        step = self._at_once or max(len(given), 1)
        parts = []
        for start in range(0, len(given), step):
            part = given[start : start + step]
            filled = np.pad(part, [(0, (self._at_once or len(part)) - len(part)), (0, 0), (0, 0), (0, 0)])
            try:
                found = self._session.run(None, {self._input.name: filled})[0]
            except Exception as error:  # onnxruntime's own classes; callers expect what a module would raise
                raise RuntimeError(first_line(error)) from error
            parts.append(found[: len(part)])
        return torch.from_numpy(np.concatenate(parts)).to(images)


def require() -> None:
    """Check that what exporting needs is installed.

    Raises
    ------
    UserError
        If it is not.
    """
    _runtime()
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("onnx", "files are written by it", "onnx") from error


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "ONNX files run in it", "onnx") from error
    return onnxruntime


def read(path: str) -> OnnxClassifier:
    """Read an ONNX file as a black box.

    Raises
    ------
    UserError
        If there is no such file, or it cannot be read.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError("RCV-E092", f"{path} does not exist", "there is no model to load", "check --model onnx:FILE")
    return OnnxClassifier(file)


def export(classifier: nn.Module, images: Float[Tensor, "n c h w"]) -> tuple[bytes, float]:
    """Write a classifier as ONNX, normalisation and resizing inside, for batches of any size.

    Parameters
    ----------
    images
        A few images, on which the logits of the file are held against the classifier's.

    Returns
    -------
    tuple
        The file, and the largest difference of a logit as a share of the largest logit.

    Raises
    ------
    UserError
        If onnx is not installed, the classifier cannot be exported, or its logits differ by more than 1e-4.
    """
    require()
    device = next(classifier.parameters()).device
    with frozen(classifier), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            _write(classifier.cpu(), images.cpu(), path)
            with torch.no_grad():
                expected = classifier(images.cpu())
        finally:
            classifier.to(device)
        data, found = path.read_bytes(), OnnxClassifier(path)(images.cpu())
    gap = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not gap <= TOLERANCE:
        raise UserError(
            "RCV-E093",
            f"the logits of the exported file differ by {gap:.2g} of the largest one",
            f"more than {TOLERANCE:g}: it would be another classifier",
            "leave --export out, and export with the tool that serves the model",
        )
    return data, gap


def _write(classifier: nn.Module, images: Tensor, path: Path) -> None:
    batch = torch.export.Dim("n", min=1)
    talk = logging.getLogger("torch.onnx")
    level = talk.level
    try:
        talk.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torch remarks on its own exporter; the logits are checked below
            torch.onnx.export(
                classifier,
                (images[:2],),
                path,
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            "RCV-E093",
            "the classifier cannot be exported to ONNX",
            first_line(error, 160),
            "leave --export out",
        ) from error
    finally:
        talk.setLevel(level)
