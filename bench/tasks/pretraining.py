"""The encoder of all cases: pre-trained on unlabelled scenes and nothing else, by specfast's own commands."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.machine import versions
from specfast import cli, create_model
from specfast.files import write_atomic

RECORD = "pretraining.json"


@dataclass(frozen=True)
class Settings:
    """All that the weights depend on; taken for the time that they need, one setting, not tuned.

    Attributes:
        crop: side of the training crops in pixels, that of an EnMAP tile.
        tile, stride: of the larger scene's tiles in pixels, which makes as many of them as there are EnMAP tiles.
    """

    model: str = "specaware_tiny_patch4"
    depth: int = 4
    rank: int = 16
    condition_dim: int = 128
    content_grid: int = 12
    generator_init: str = "fan_in"
    crop: int = 32
    tile: int = 48
    stride: int = 33
    steps: int = 3000
    batch_size: int = 16
    lr: float = 5e-4
    warmup: float = 0.05
    seed: int = 0


QUICK = Settings(depth=1, rank=4, condition_dim=16, content_grid=4, steps=4, batch_size=4)


def pretrain(data: Path, work: Path, settings: Settings) -> tuple[Path, dict]:
    """Pre-train on Indian Pines and the EnMAP tiles, or take what an earlier call left; an interrupted one goes on.

    Args:
        data: folder with ``indian_pines`` and ``enmap_potsdam``.
        work: receives stores, the run and the model.
        settings: see :class:`Settings`.

    Returns:
        the model's folder, and what to say of it: settings, scenes, seconds, samples, loss, versions.

    Raises:
        SystemExit: a command failed, with its exit code; or ``work`` holds a model made with other settings.
    """
    model, record = work / "run" / "model", work / RECORD
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        if found["settings"] != asdict(settings):
            raise SystemExit(f"{record}: the model here was made with other settings; remove {work}, or name another")
        return model, found
    scene = data / "indian_pines" / "Indian_pines_corrected.npy"
    tiles = sorted((data / "enmap_potsdam" / "images").glob("*.tif"))
    cut = ("--tile", settings.tile, "--stride", settings.stride)
    _run("prepare", scene, work / "indian_pines", "--sensor", "indian_pines", *cut, "--quiet")
    _run("prepare", *tiles, work / "enmap", "--tile", settings.crop, "--quiet")
    names = ("depth", "rank", "condition_dim", "content_grid", "generator_init")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        initial = create_model(
            settings.model, image_size=settings.crop, **{name: getattr(settings, name) for name in names}
        )
    initial.save_pretrained(work / "initial")
    told = ("crop", "steps", "batch_size", "lr", "warmup", "seed")
    options = [part for name in told for part in (f"--{name.replace('_', '-')}", getattr(settings, name))]
    _run(
        "pretrain",
        *("--data", work / "indian_pines", work / "enmap"),
        *("--out", work / "run", "--model", work / "initial"),
        *("--bands", "all", "--precision", "float32", "--device", "cpu"),
        *("--log-every", max(1, settings.steps // 150), "--quiet"),
        *options,
    )
    found = {
        "settings": asdict(settings),
        "scenes": [scene.name, f"{len(tiles)} tiles of EnMAP"],
        "parameters": sum(parameter.numel() for parameter in initial.parameters()),
        **_log(work / "run" / "log.csv"),
        "versions": versions(torch.device("cpu")),
    }
    write_atomic(record, json.dumps(found, indent=1).encode())
    return model, found


def _log(path: Path) -> dict:
    """What the training log says at its end."""
    with path.open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return {name: round(float(last[name]), 4) for name in ("seconds", "samples", "loss")}


def _run(*argv: object) -> None:
    if code := cli.main([str(one) for one in argv]):
        raise SystemExit(code)
