"""Every command line of the documentation is run as written, in order, in a folder with the files that its page names.

The tutorials and the quick start make their files themselves: see test_tutorials.py. Lines that cannot be run as they
stand, or take minutes, are listed here with the reason; a line that is neither run nor listed fails.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason='the pages name GeoTIFFs: pip install "specfast[geo]"')
pytest.importorskip("sklearn", reason='the tables need pip install "specfast[probe]"')
pytest.importorskip("matplotlib", reason='pictures need pip install "specfast[plot]"')
pytest.importorskip("zarr", reason='features.zarr needs pip install "specfast[zarr]"')

from specfast import attributes, cli
from tests.docs import command_files
from tests.docs.markdown import PAGES, ROOT, blocks, commands
from tests.docs.test_tutorials import TUTORIALS

# What each page takes for granted; everything else its own commands must make.
GIVEN = {
    "README.md": ["scene.hdr", "labels.npy", "before.hdr", "after.hdr", "detector"],
    "docs/cli.md": ["scene.npy", "scene.hdr", "labels.npy", "run", "store"],
    "docs/dssync.md": ["network.json"],
    "docs/formats.md": ["scene.hdr"],
    "docs/interoperability.md": ["scene.hdr", "runs"],
    "docs/performance.md": ["before.json", "after.json"],
    "docs/pictures.md": [
        *("large/scene.hdr", "large/map.tif", "large/truth.tif", "change.tif", "before.tif", "after.tif"),
        *("scores.tif", "targets.tif", "embedding.tif", "run", "store"),
    ],
    "docs/scenes.md": ["flightline.hdr", "may.tif", "august.tif", "scene.hdr", "targets.tif", "runs"],
    "docs/tasks.md": [
        *("scene.npy", "labels.npy", "run", "tiles.csv", *(f"tile{number}.hdr" for number in range(24))),
        *("shares.npy", "before.npy", "after.npy", "changes.npy"),
    ],
}

# What stands for a name of the reader's, by the beginning of a word.
PLACEHOLDERS = {
    "SCENES...": "scene.hdr",
    "SCENE": "scene.hdr",
    "LABELS": "labels.npy",
    "BEFORE": "before.hdr",
    "AFTER": "after.hdr",
    "DETECTOR": "detector",
    "STORE": "store",
    "RUN": "run",
    "OTHER": "other",
    "OUT": "out",
}

BRIEF = " ".join(command_files.BRIEF)
# Lines that are too much for a test with their defaults, and what is added to them.
SHORTENED = {
    "specfast pretrain --data STORE --out RUN": BRIEF,  # 100 000 steps of the base model
    "torchrun --nproc-per-node 4 -m specfast pretrain --data STORE --out OTHER --sync dssync": BRIEF,
}

QUICK = "--steps 2"
FEW = "--seeds 1 --labels-per-class 5"
ONE = f"{FEW} --splits random --baselines svm"
# Lines that take long even on small files: with these options, or not at all (None), in each run of the tests, and as
# written in the slow one.
LONG: dict[str, str | None] = {
    "specfast probe RUN/model SCENE --labels LABELS": ONE,
    "specfast finetune segment SCENE --labels LABELS --model RUN/model --out OUT": f"{ONE} {QUICK} --no-control",
    "specfast finetune segment scene.npy --sensor indian_pines --labels labels.npy --model run/model --out segmenter": (
        f"{ONE} {QUICK} --no-control"
    ),
    "specfast finetune classify tiles.csv --model run/model --out classifier": f"{FEW} {QUICK} --no-control",
    "specfast finetune regress scene.npy --sensor indian_pines --targets shares.npy --target-names soil leaves "
    "--model run/model --out regressor": f"--seeds 1 --training-pixels 50 {QUICK} --splits random --no-control",
    "specfast finetune change before.npy after.npy --sensor indian_pines --labels changes.npy --model run/model "
    "--out detector": f"{FEW} {QUICK} --splits random --baselines cva --no-control",
    "specfast finetune segment SCENE --labels LABELS --model RUN/model --out OUT --all-labels": QUICK,
    "specfast finetune segment scene.npy --sensor indian_pines --labels labels.npy --model run/model --out segmenter "
    "--all-labels": QUICK,
    "specfast finetune classify tiles.csv --model run/model --out classifier --all-labels": QUICK,
    "specfast finetune regress scene.npy --sensor indian_pines --targets shares.npy --target-names soil leaves "
    "--abundance --model run/model --out regressor --all-targets": QUICK,
    "specfast finetune change before.npy after.npy --sensor indian_pines --labels changes.npy --model run/model "
    "--out detector --all-labels": QUICK,
    "specfast probe --config probe.yaml": ONE,
    "specfast probe --config probe.yaml --seeds 5": ONE,
    "specfast dssync simulate --compute-ms 100 --jitter 0.1 --out scaling.png": "--worlds 4 16",
    "specfast export runs/pretrain/model --sensor aviris_ng --level L1 --gsd 4 --format aoti --out avng.pt2 "
    "--size 128": None,  # compiles
    "torchrun --nproc-per-node 4 -m specfast pretrain --data STORE --out OTHER --sync dssync": None,
    "python -m bench --quick": None,
}

# Lines that are not run here, and why.
NOT_RUN = {
    "make demo": "eight minutes; test_demo.py runs the demo on a small scene",
    "make test": "these are its tests",
    "make bench": "half an hour; tests/bench runs its parts",
    "make gpu": "needs a GPU",
    "pip install .": "needs a package index; tests/packaging installs the wheel",
    "pip install .[geo,hdf]": "needs a package index; tests/packaging installs the wheel",
    "pip install .[geo,hdf,plot]": "needs a package index; tests/packaging installs the wheel",
    "git clone <this repository>": "has no address yet",
    "cd specfast": "follows the clone",
    ".venv/bin/pip install pre-commit": "needs a network",
    ".venv/bin/pre-commit install": "changes the checkout",
    "specfast demo": "eight minutes; test_demo.py runs it on a small scene",
    "torchrun --nproc-per-node 1 --nnodes 16 ... -m specfast dssync measure --out network.json": (
        "needs 16 machines; tests/dssync/test_measure.py runs it on up to four processes"
    ),
    "python -m bench step --bands 202 --dtypes bfloat16": "minutes, and writes bench/results of the checkout",
    "pytest bench --benchmark-only": "minutes; needs the checkout's folder",
    "python -m bench.plot": "writes the figures of the checkout; tests/bench/test_reports.py draws them",
    "python -m bench.table": "writes the tables of the checkout; tests/bench/test_reports.py compares them",
}

# What a line needs beside [all]; without it, the line must say how to get it.
NEEDS = {"--format onnx": ("onnxscript", "specfast[export]")}


@dataclass(frozen=True)
class Line:
    """A command as the page shows it, its words, and the file that takes its output ("" for none)."""

    shown: str
    words: list[str]
    target: str


def lines(path: Path) -> list[Line]:
    """The commands of a page; those joined by && are several."""
    found = []
    for block in blocks(path, "sh", "bash", "shell", "console"):
        for words in commands(block):
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                one, words = words[:end], words[end + 1 :]
                target = one.pop() if ">" in one else ""
                one = [word for word in one if word != ">"]
                found.append(Line(" ".join(one), one, target))
    return found


def pages() -> list[Path]:
    candidates = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [path for path in candidates if path not in TUTORIALS and lines(path)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def filled(words: list[str]) -> list[str]:
    """The words with names for the placeholders, and * expanded as a shell does."""
    for placeholder, name in PLACEHOLDERS.items():
        words = [name + word.removeprefix(placeholder) if word.startswith(placeholder) else word for word in words]
    return [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


def call(words: list[str]) -> int:
    """Run a command here, or under torchrun in processes of its own; return its exit code."""
    if words[0] == "specfast":
        return cli.main(words[1:])
    if words[:3] == ["python", "-m", "specfast"]:
        return cli.main(words[3:])
    if words[:2] == ["python", "-m"]:
        module = words[2] if "." in words[2] else f"{words[2]}.__main__"
        return importlib.import_module(module).main(words[3:]) or 0
    assert words[0] == "torchrun", f"no test runs {words[0]}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True)
    print(done.stdout)
    print(done.stderr, file=sys.stderr)
    return done.returncode


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The folder with everything that :data:`GIVEN` names."""
    folder = tmp_path_factory.mktemp("files")
    with contextlib.chdir(folder):
        command_files.make(folder)
    return folder


@pytest.mark.xdist_group("commands")  # one process makes the files
@pytest.mark.parametrize("as_written", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["short", "as written"])
@pytest.mark.parametrize("path", pages(), ids=name_of)
def test_commands_run(path, as_written, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attributes, "_text_encoder", _no_network)  # with [text], it asks the hub for EnMAP's sentence
    command_files.give(files, GIVEN.get(name_of(path), []), tmp_path)
    for line in lines(path):
        more = "" if as_written else LONG.get(line.shown, "")
        if line.shown in NOT_RUN or more is None:
            continue
        code = call([*filled(line.words), *(SHORTENED.get(line.shown) or more).split()])
        out, err = capsys.readouterr()
        lacking = [pip for words, (name, pip) in NEEDS.items() if words in line.shown and not _installed(name)]
        assert code == (2 if lacking else 0), f"{name_of(path)}: {line.shown}\ngave {code}: {err}"
        assert all(pip in err for pip in lacking)
        assert "Traceback" not in err, f"{name_of(path)}: {line.shown}\n{err}"
        if line.target:
            Path(line.target).write_text(out)


def test_tables_hold_no_line_that_is_not_shown():
    shown = {line.shown for path in pages() for line in lines(path)}
    assert {*SHORTENED, *LONG, *NOT_RUN} <= shown
    assert set(GIVEN) <= {name_of(path) for path in pages()}


def _no_network():
    raise OSError("no network in the tests")


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
