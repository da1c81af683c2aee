"""Models on the Hugging Face hub: a model card beside what ``save_pretrained`` writes, and the upload.

Any model's ``from_pretrained("user/model")`` loads what lies there.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from torch import nn

from specfast.files import write_atomic
from specfast.models.pretrained import CONFIG_FILE, WEIGHTS_FILE

CARD_FILE = "README.md"
_TAGS = ("specfast", "specaware", "hyperspectral", "remote-sensing", "earth-observation")
# the hub's name for what a model does, where it has one
_PIPELINES = {
    "SpecAwareMAE": "image-feature-extraction",
    "SpecAwareEncoder": "image-feature-extraction",
    "SpecAwareSegmenter": "image-segmentation",
    "SpecAwareClassifier": "image-classification",
}
_PAPER = (
    "Ji, Wang, Niu, Zhang, Mei, Tan: SpecAware, a spectral-content aware foundation model for unifying multi-sensor "
    "learning in hyperspectral remote sensing mapping. ISPRS J. Photogramm. Remote Sens. 234 (2026) 242-260."
)


def save_with_card(model: nn.Module, folder: str | os.PathLike, **card) -> Path:
    """Write a model's folder with :func:`model_card` as its README.md.

    Args:
        model: has ``save_pretrained``.
        folder: where to; complete files replace older ones.
        card: arguments of :func:`model_card`.
    """
    folder = model.save_pretrained(folder)
    write_atomic(folder / CARD_FILE, model_card(folder, **card).encode())
    return folder


def model_card(
    folder: str | os.PathLike,
    *,
    title: str | None = None,
    license: str | None = None,
    trained_on: str | None = None,
    sensors: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> str:
    """Return a model card for a folder written by ``save_pretrained``: the hub's metadata, sizes, and how to load it.

    Args:
        folder: holds config.json.
        title: heading; by default the folder's name.
        license: the hub's identifier of the weights' license, such as ``"apache-2.0"``.
        trained_on: what it was trained on, in words.
        sensors: names of sensors whose images it takes or was trained on.
        tags: further tags.
    """
    config = json.loads((Path(folder) / CONFIG_FILE).read_text())
    architecture = config.pop("architecture")
    encoder = config.get("encoder", config)
    metadata = {
        "library_name": "specfast",
        "pipeline_tag": _PIPELINES.get(architecture),
        "license": license,
        "tags": [*_TAGS, *tags],
    }
    facts = {
        "Architecture": architecture,
        "Patch size": f"{encoder['patch_size']} pixels",
        "Encoder": f"width {encoder['embed_dim']}, {encoder['depth']} blocks, {encoder['num_heads']} heads",
        "Head": config.get("head"),
        "Outputs": ", ".join(config.get("outputs", [])),
        "Sensors": ", ".join(sensors),
        "Trained on": trained_on,
    }
    header = yaml.safe_dump({key: value for key, value in metadata.items() if value}, sort_keys=False)
    images = [("image", "scene", "batch")]
    if architecture == "SpecAwareChangeDetector":
        images = [(date, date, f"batch_{date}") for date in ("before", "after")]
    example = "\n".join(
        f"""{image} = specfast.data.open("{file}.hdr")  # wavelengths, FWHM, GSD, sensor and level come from the file
{batch} = specfast.SpectralBatch.from_samples([{image}.sample(window=(0, 0, 224, 224))], {encoder["patch_size"]})"""
        for image, file, batch in images
    )
    inputs = ", ".join(batch for *_, batch in images)
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value)
    return f"""---
{header}---

# {title or Path(folder).resolve().name}

A [SpecAware](https://arxiv.org/abs/2510.27219) model for hyperspectral images of any bands, saved by specfast.

| | |
| --- | --- |
{rows}

```python
import specfast

model = specfast.{architecture}.from_pretrained("THIS_REPOSITORY").eval()
{example}
out = model({inputs})
```

Images are radiance in uW / (cm^2 nm sr) (level L1) or reflectance from 0 to 1 (level L2); wavelengths and FWHM in nm,
ground sampling distance in m.

{_PAPER}
"""


def push_to_hub(
    model: nn.Module | str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str = "Upload with specfast",
    **card,
) -> str:
    """Upload a model, with the login that huggingface_hub knows.

    Args:
        model: a model, or a folder written by ``save_pretrained``; a README.md that is there already is kept, otherwise
            one is written.
        repo_id: ``"user/name"``; the repository is made if it does not exist.
        private: whether a new repository is private.
        commit_message: of the upload.
        card: arguments of :func:`model_card`.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: the folder holds no model. ImportError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ImportError('huggingface_hub: not installed; pip install "specfast[hub]"') from None
    card.setdefault("title", repo_id.rpartition("/")[2])
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(model, nn.Module):
            folder = model.save_pretrained(temporary)
        else:
            folder = Path(model)
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                if not (folder / name).is_file():
                    raise FileNotFoundError(f"{folder}: holds no {name}; expected a folder written by save_pretrained")
        if not (folder / CARD_FILE).is_file():
            text = model_card(folder, **card).replace("THIS_REPOSITORY", repo_id)
            write_atomic(folder / CARD_FILE, text.encode())
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE],
        )
    return str(commit.commit_url)
