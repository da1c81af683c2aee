"""Any bytes as a checkpoint, a published one, or a model's folder: one CheckpointError. Run by `make fuzz`."""

from __future__ import annotations

import io
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["specfast.models", "specfast.train"]):
    from specfast.errors import CheckpointError
    from specfast.models import SpecAwareMAE, create_model, load_published
    from specfast.train.checkpoint import load_checkpoint

folder = Path(tempfile.mkdtemp(prefix="specfast-fuzz-"))
model = create_model(
    "specaware_tiny_patch4", image_size=8, embed_dim=8, depth=1, num_heads=1, decoder_embed_dim=8, decoder_depth=1,
    decoder_num_heads=1, condition_dim=8, rank=2,
)  # fmt: skip
model.save_pretrained(folder / "model")
CONFIG, WEIGHTS = ((folder / "model" / name).read_bytes() for name in ("config.json", "model.safetensors"))


def one(data: bytes) -> None:
    """The first byte says which file the others are."""
    kind, content = data[:1], data[1:]
    try:
        if kind == b"c":
            (folder / "x.pt").write_bytes(content)
            load_checkpoint(folder / "x.pt")
        elif kind == b"p":
            (folder / "x.pth").write_bytes(content)
            load_published(folder / "x.pth")
        else:
            (folder / "model" / "config.json").write_bytes(content if kind == b"j" else CONFIG)
            (folder / "model" / "model.safetensors").write_bytes(WEIGHTS if kind == b"j" else content)
            SpecAwareMAE.from_pretrained(folder / "model")
    except CheckpointError:
        pass


def saved(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    corpus = folder / "corpus"
    corpus.mkdir()
    for name, start in {
        "checkpoint": b"c" + saved({"format": "x", "version": 1}),
        "published": b"p" + saved({"model": {"cls_token": torch.zeros(1, 1, 8)}}),
        "config": b"j" + CONFIG,
        "weights": b"w" + WEIGHTS[:2000],
    }.items():
        (corpus / name).write_bytes(start)
    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()
