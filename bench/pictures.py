"""python -m bench.pictures: make the pictures of docs/images that show what specfast draws, with its own commands.

The pictures of real scenes need --data, the folder with the files that SCENE, SECOND and TARGETS name; demo needs
--demo, the folder of a finished `make demo`, whose picture it is. Each is made if what it needs is given. The same
files give the same pictures, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.machine import ROOT
from specfast import cli, create_model
from specfast.cli.demo.stages import MARKER
from specfast.cli.demo.work import Settings
from specfast.errors import DataError
from specfast.files import write_atomic

IMAGES = ROOT / "docs" / "images"
SCENE = "indian_pines/Indian_pines_corrected.npy"  # uint16 [145, 145, 200]
SECOND = "cd_semisynthetic/indian_pines_pseudo_t2.npz"  # T2: a made-up second date; change: uint8 [145, 145], 1 changed
TARGETS = "casi_muufl/an_hsi_img_for_tgt_det_demo.mat"  # hsi_sub: [36, 36, 72]; gtImg_sub: [36, 36], targets above 0
SENSOR = ("--sensor", "indian_pines")
LABELS, UNLABELED, SEED = 100, 255, 0  # labels of changed and of unchanged pixels each


def show_scene(data: Path, work: Path, out: Path) -> None:
    """Indian Pines and four of its spectra."""
    run("show", data / SCENE, *SENSOR, "--out", out)


def show_change(data: Path, work: Path, out: Path) -> None:
    """What a detector makes of two dates: a tiny encoder as it starts, and heads trained on LABELS pixels of a kind."""
    with np.load(data / SECOND) as made:
        arrays = {"after": made["T2"], "truth": made["change"]}
    arrays["labels"] = draw_labels(arrays["truth"])
    for name, array in arrays.items():
        np.save(work / f"{name}.npy", array)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        create_model("specaware_tiny_patch8", task="encoder").save_pretrained(work / "encoder")
    dates = (data / SCENE, work / "after.npy")
    alike = ("--device", "cpu", "--precision", "float32", "--quiet")  # else chosen by what the machine has
    learned = ("--labels", work / "labels.npy", "--model", work / "encoder", "--all-labels")
    run("finetune", "change", *dates, *SENSOR, *learned, *alike, "--out", work / "detector")
    model = work / "detector" / "model"
    run("change", *dates, *SENSOR, "--model", model, *alike, "--out", work / "change.npy")
    run("show", work / "change.npy", *SENSOR, "--against", *dates, work / "truth.npy", "--out", out)


def draw_labels(truth: np.ndarray) -> np.ndarray:
    """Return ``truth`` (0 unchanged, 1 changed) with all but LABELS pixels of each kind UNLABELED, uint8 [H, W]."""
    rng = np.random.default_rng(SEED)
    labels = np.full(truth.shape, UNLABELED, dtype=np.uint8)
    for value in (0, 1):
        labels.flat[rng.choice(np.flatnonzero(truth == value), LABELS, replace=False)] = value
    return labels


def show_anomaly(data: Path, work: Path, out: Path) -> None:
    """RX scores of a CASI scene, its known targets outlined."""
    told = ("--sensor", "casi", "--level", "L2", "--gsd", "1", "--variable", "hsi_sub")
    run("detect", data / TARGETS, *told, "--method", "rx", "--device", "cpu", "--quiet", "--out", work / "rx.npy")
    run("show", work / "rx.npy", "--against", data / TARGETS, "--variable", "gtImg_sub", "--out", out)


def run(*argv: object) -> None:
    """Run a command of specfast, which says itself what it did, or what is wrong.

    Raises:
        SystemExit: with the command's exit code, if it failed.
    """
    code = cli.main([str(one) for one in argv])
    if code != cli.OK:
        raise SystemExit(code)


def copy_demo(folder: Path, out: Path) -> None:
    """Copy the picture of a finished demo.

    Raises:
        DataError: the folder holds no finished demo, or one with other settings than those of `make demo`.
    """
    usual = Settings()
    for stage, settings in {"pretrain": usual.pretraining(), "probe": usual.probing()}.items():
        record = _record(folder / stage / MARKER)
        if not record.get("done"):
            raise DataError(f"--demo: expected the folder of a finished `make demo`; {folder} lacks its stage {stage}")
        if record.get("config") != json.loads(json.dumps(settings)):  # JSON knows lists only
            raise DataError(f"--demo: expected the settings of `make demo`; {folder / stage} was made with others")
    picture = folder / "overview.png"
    if not picture.is_file():
        raise DataError(f"--demo: expected the folder of a finished `make demo`; {folder} lacks {picture.name}")
    write_atomic(out, picture.read_bytes())
    print(f"{picture}: written to {out}")


def _record(path: Path) -> dict:
    """Return what a stage of the demo says of itself; nothing if it is not there."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


OF_SCENES = {  # name -> how it is drawn, and the files it needs
    "show-scene": (show_scene, (SCENE,)),
    "show-change": (show_change, (SCENE, SECOND)),
    "show-anomaly": (show_anomaly, (TARGETS,)),
}
NAMES = (*OF_SCENES, "demo")


def make(name: str, data: Path | None, demo: Path | None, out: Path) -> None:
    """Write one picture of NAMES into the folder ``out``; the sources that it needs are given.

    Raises:
        SystemExit: as :func:`run`.
        DataError: as :func:`copy_demo`.
    """
    picture = out / f"{name}.png"
    if name == "demo":
        copy_demo(demo, picture)
        return
    draw, _ = OF_SCENES[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and with it the last digits, would depend on it
    try:
        with tempfile.TemporaryDirectory() as work:
            draw(data, Path(work), picture)
    finally:
        torch.set_num_threads(threads)


def missing(names: Sequence[str], data: Path | None, demo: Path | None) -> str:
    """Return what the pictures ``names`` need and do not have, as an error's text; "" if there is all."""
    if not names:
        return f"give --data, --demo or both, the sources of {', '.join(NAMES)}"
    for name in names:
        option, folder = ("--demo", demo) if name == "demo" else ("--data", data)
        if folder is None:
            return f"{option}: {name} needs it"
        if not folder.is_dir():
            return f"{option}: {folder} is no folder"
        for file in () if name == "demo" else OF_SCENES[name][1]:
            if not (folder / file).is_file():
                return f"{option}: {folder} lacks {file}, which {name} needs"
    return ""


def _name(name: str) -> str:
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(NAMES)}; got {name!r}")
    return name


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", type=_name, help=f"of {', '.join(NAMES)}; default: all with a source")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder with the real scenes")
    parser.add_argument("--demo", type=Path, metavar="RUN", help="folder of a finished `make demo`")
    parser.add_argument("--out", type=Path, default=IMAGES, metavar="FOLDER", help="for the pictures (docs/images)")
    args = parser.parse_args(argv)
    given = {name: args.demo if name == "demo" else args.data for name in NAMES}
    names = args.names or [name for name, source in given.items() if source is not None]
    if message := missing(names, args.data, args.demo):
        parser.error(message)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        for name in names:
            make(name, args.data, args.demo, args.out)
    except DataError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
