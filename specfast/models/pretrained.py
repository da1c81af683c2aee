"""save_pretrained / from_pretrained: a folder with config.json and model.safetensors, as Hugging Face lays it out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from specfast.errors import CheckpointError
from specfast.files import write_atomic
from specfast.models.config import SpecAwareConfig

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
DECODER_PREFIXES = ("mask_token", "decoder_embed.", "decoder_blocks.", "decoder_norm.", "decoder_pred.")


class PretrainedMixin:
    """Saving and loading for a module that is built from ``config``."""

    @classmethod
    def build_config(cls, values: dict, overrides: dict):
        """Build the configuration from the values of config.json and what replaces some of them."""
        return SpecAwareConfig.from_dict({**values, **overrides})

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write config.json and model.safetensors; each replaces an older file only when complete."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        weights = folder / (WEIGHTS_FILE + ".tmp")
        save_file(state, weights, metadata={"format": "pt"})
        os.replace(weights, folder / WEIGHTS_FILE)
        content = {"architecture": type(self).__name__, **self.config.to_dict()}
        write_atomic(folder / CONFIG_FILE, (json.dumps(content, indent=2) + "\n").encode())
        return folder

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **overrides):
        """Load a model from a folder, or from the Hugging Face hub by its name (needs huggingface_hub).

        ``overrides`` replace options of the configuration that do not change shapes, such as gradient_checkpointing.
        An encoder may be loaded from the folder of a pre-training or task model.

        Raises:
            FileNotFoundError: no such folder, or a file of it is missing.
            CheckpointError: the weights do not fit the configuration; every offending key is named.
        """
        folder = resolve(source)
        values = read_config(folder)
        architecture = values.pop("architecture", cls.__name__)
        try:
            state = load_file(folder / WEIGHTS_FILE)
        except SafetensorError as error:
            raise CheckpointError(f"{folder / WEIGHTS_FILE}: cannot be read, is it complete? {error}") from error
        if architecture == "SpecAwareMAE" and cls.__name__ == "SpecAwareEncoder":
            state = {name: value for name, value in state.items() if not name.startswith(DECODER_PREFIXES)}
        elif isinstance(values.get("encoder"), dict) and cls.__name__ == "SpecAwareEncoder":  # a task model's
            values, state = values["encoder"], part_of(state, "encoder.")
        elif architecture != cls.__name__:
            raise CheckpointError(f"{folder}: holds a {architecture}, expected a {cls.__name__}")
        try:
            cls.build_config(values, {})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: is not a model's configuration: {error}") from error
        model = cls(cls.build_config(values, overrides))
        load_exactly(model, state, str(folder))
        return model


def read_config(folder: Path) -> dict:
    """Read config.json of a model's folder; CheckpointError if it is no mapping of names to values."""
    try:
        values = json.loads((folder / CONFIG_FILE).read_text())
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: is not a model's configuration: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: is not a model's configuration: holds a {type(values).__name__}"
        )
    return values


def part_of(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_exactly(model: torch.nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict; raise one CheckpointError naming every missing, unexpected and misshapen key."""
    own = model.state_dict()
    problems = [f"missing {name} {list(own[name].shape)}" for name in own if name not in state]
    problems += [f"unexpected {name} {list(state[name].shape)}" for name in state if name not in own]
    problems += [
        f"misshapen {name} {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        raise CheckpointError(f"{source}: does not fit {type(model).__name__}: " + "; ".join(problems))
    model.load_state_dict(state)


def resolve(source: str | os.PathLike) -> Path:
    """Return a model's folder, downloaded first if the source is a name on the Hugging Face hub."""
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or not _is_hub_name(str(source)):
            raise FileNotFoundError(f"{source}: no such model folder")
        try:
            from huggingface_hub import snapshot_download
        except ImportError:
            raise FileNotFoundError(
                f"{source}: no such folder; to load it from the Hugging Face hub, pip install huggingface_hub"
            ) from None
        try:
            folder = Path(snapshot_download(str(source), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
        except Exception as error:  # of the network, the hub and its cache, in types that changed with its versions
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FileNotFoundError(
                f"{source}: no such folder, and not to be had from the Hugging Face hub: {reason}"
            ) from error
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: holds no {name}; expected a folder written by save_pretrained")
    return folder


def _is_hub_name(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith(("/", ".", "~"))
