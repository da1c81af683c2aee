"""The order of the demo's stages."""

from __future__ import annotations

import csv
import io
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

import specfast
from specfast.cli.demo import page, work
from specfast.cli.demo.scene import load_scene
from specfast.cli.demo.stages import Stages
from specfast.cli.demo.work import Settings
from specfast.files import write_atomic


def run_demo(settings: Settings, out: Path, *, fresh: bool = False, progress: bool = True) -> Path:
    """Run what is not finished yet, and write the report.

    Writes ``report.html``, ``overview.png``, ``loss.csv``, ``probe.json`` and one folder a stage.

    Returns:
        the report's path.
    """
    started = time.perf_counter()
    stages = Stages(out, fresh=fresh, announce=print)
    images, labels = load_scene()
    store = stages.run(
        "store",
        {"shapes": {name: list(image.shape) for name, image in images.items()}},
        lambda folder: work.prepare_store(images, folder),
    )
    model = {name: value for name, value in work.settings_dict(settings).items() if name in ("model", "model_options")}
    initial = stages.run(
        "initial",
        {**model, "crop": settings.crop, "seed": settings.seed},
        lambda folder: work.write_initial_model(settings, folder),
    )
    trained = stages.run(
        "pretrain",
        settings.pretraining(),
        lambda folder: work.pretrain_model(
            settings, store.folder / "store", initial.folder / "model", folder, progress=progress
        ),
        after=(store, initial),
    )
    filled = stages.run(
        "fill",
        {"seed": settings.seed},
        lambda folder: work.fill_scenes(settings, images, trained.folder / "model", folder),
        after=(trained,),
    )
    probed = stages.run(
        "probe",
        settings.probing(),
        lambda folder: work.probe_model(
            settings, images["AVIRIS"], labels, trained.folder / "model", folder, progress=progress
        ),
        after=(trained,),
    )
    results = page.Results(
        settings=work.settings_dict(settings),
        wavelengths={sensor: image.wavelength for sensor, image in images.items()},
        labels=labels,
        filled=work.read_filled(filled.folder, list(images)),
        **work.read_results(trained.folder, filled.folder, probed.folder),
        stages=[(stage.name, stage.seconds, stage.reused) for stage in stages.done],
        title_facts=_facts(settings, time.perf_counter() - started),
    )
    write_atomic(out / "probe.json", (probed.folder / "probe.json").read_bytes())
    write_atomic(out / "loss.csv", _csv(results.history))
    page.save_overview(results, out / "overview.png")
    print(f"\n{results.verdict}")
    return page.build(results).save(out / "report.html")


def _csv(history: dict) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(history)
    writer.writerows(zip(*history.values(), strict=True))
    return text.getvalue().encode()


def _facts(settings: Settings, seconds: float) -> dict:
    """What a reader needs to judge times and to repeat the run."""
    return {
        "seconds of this call": f"{seconds:.1f}",
        "seed": settings.seed,
        "specfast": specfast.__version__,
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "NumPy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
    }
