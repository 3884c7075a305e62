"""The vision half of a SigLIP or SigLIP 2 model and the processor that came with it.

Shape letters: B images of a batch, D width.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from recpipe.content.devices import DTYPES
from recpipe.content.pretrained import check_weights, loading, read_json

TEXT_HALF = [r"^text_model\.", r"^logit_(scale|bias)$"]  # of a checkpoint, left out without a word
# by model_type; SigLIP 2 of fixed resolution is built as SigLIP, "siglip2" is its NaFlex variant
CLASSES = {
    "siglip": ("SiglipVisionModel", "SiglipImageProcessorPil"),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipImageProcessorPil"),
    "siglip2": ("Siglip2VisionModel", "Siglip2ImageProcessorPil"),
    "siglip2_vision_model": ("Siglip2VisionModel", "Siglip2ImageProcessorPil"),
}


def model_type(folder: Path) -> str:
    """What ``config.json`` says. Raises ValueError that lists what can be used."""
    described = read_json(folder / "config.json")
    found = described.get("model_type")
    if found not in CLASSES:
        raise ValueError(
            f"{folder} holds a model of type {found!r}; images are encoded by {', '.join(CLASSES)}"
        )
    if described.get("vision_config", described).get("vision_use_head") is False:
        raise ValueError(f"{folder} holds a vision model without a pooling head: it has no vector per image")
    return found


class LazyEncoder:
    """An ``ImageEncoder`` that is loaded when the first thread asks for it, if one ever does."""

    def __init__(self, folder: Path, device: torch.device, precision: str) -> None:
        self._settings = folder, device, precision
        self._encoder: ImageEncoder | None = None
        self._loading = threading.Lock()

    def loaded(self) -> ImageEncoder:
        """The encoder, the same one for all threads."""
        with self._loading:
            if self._encoder is None:
                folder, device, precision = self._settings
                self._encoder = ImageEncoder(folder, device=device, precision=precision)
            return self._encoder


class ImageEncoder:
    """The pooled output of the vision tower. Raises ValueError where a weight is missing, none is made up."""

    def __init__(self, folder: Path, *, device: torch.device, precision: str) -> None:
        import transformers

        tower, processor = (getattr(transformers, name) for name in CLASSES[model_type(folder)])
        with loading(folder, "an image encoder"):
            self._processor = processor.from_pretrained(folder, trust_remote_code=False)
        self._model = _loaded(tower, folder, DTYPES[precision]).to(device)
        self._device = device

    def prepare(self, image: Image.Image) -> dict[str, NDArray[Any]]:
        """What the tower reads of one image in mode RGB; safe to call from many threads."""
        return {name: array[0] for name, array in self._processor(images=image, return_tensors="np").items()}

    @torch.inference_mode()
    def encode(self, prepared: list[dict[str, NDArray[Any]]]) -> NDArray[np.float32]:
        """Vectors (B, D), not normalised."""
        batch = {
            name: torch.from_numpy(np.stack([one[name] for one in prepared])).to(self._device)
            for name in prepared[0]
        }
        pooled_BD = self._model(**batch).pooler_output
        return pooled_BD.float().cpu().numpy()


def _loaded(tower: Any, folder: Path, dtype: torch.dtype) -> Any:
    quiet: Any = type(tower.__name__, (tower,), {"_keys_to_ignore_on_load_unexpected": TEXT_HALF})
    with loading(folder, "an image encoder"):
        model, report = quiet.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused below by name
        )
    check_weights(folder, report, of="the vision tower")
    return model
