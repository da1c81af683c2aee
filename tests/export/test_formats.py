"""Files that run without specfast: what they compute, their facts, and that a wrong one is not written."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
import torch

from specfast.export import FORMATS, export, fold
from specfast.export import formats as module
from specfast.testing import assert_close
from tests.export.conftest import BANDS, images, plain

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason='ONNX is not installed: pip install "specfast[export]"',
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
EVERY_FORMAT = [
    "torch",
    pytest.param("aoti", marks=[needs_compiler, pytest.mark.slow]),
    pytest.param("onnx", marks=needs_onnx),
]


def ending(format: str) -> str:
    return FORMATS[format][1][0]


def run_onnx(path, image):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["cls", "level_1", "level_2", "level_3", "level_4"]
    return [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]


RUN = {
    "torch": lambda path, image: torch.export.load(path).module()(image),
    "aoti": lambda path, image: torch._inductor.aoti_load_package(str(path))(image),
    "onnx": run_onnx,
}


@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_exact_with_content(encoder, bands, tmp_path, format):
    path = tmp_path / f"encoder{ending(format)}"
    written = export(fold(encoder, bands, image_size=(32, 24)), path, format)
    assert written.exact
    assert written.difference < 1e-5
    batch = images(5, 32, 24)
    outputs = RUN[format](path, plain(batch))
    with torch.no_grad():
        features = encoder(batch)
    for output, expected in zip(outputs, (features.cls, *features.levels), strict=True):
        assert_close(output, expected, 1e-5)


@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_a_convolution_takes_any_size(encoder, tmp_path, format):
    path = tmp_path / f"encoder{ending(format)}"
    folded = fold(encoder, content=images(1))
    assert not export(folded, path, format, image_size=(32, 40)).exact
    for size in ((1, 16, 72), (4, 40, 16)):
        image = plain(images(*size))
        with torch.no_grad():
            expected = folded(image)
        for output, one in zip(RUN[format](path, image), expected, strict=True):
            assert_close(output, one, 1e-5)


def test_a_program_needs_no_specfast(encoder, bands, tmp_path):
    path = tmp_path / "encoder.pt2"
    export(fold(encoder, bands, image_size=16), path, "torch")
    code = (
        "import sys; sys.modules['specfast'] = None; import torch\n"
        f"out = torch.export.load({str(path)!r}).module()(torch.rand(1, {BANDS}, 16, 16))\n"
        "print([list(tensor.shape) for tensor in out])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([[1, 32], *[[1, 32, 2, 2]] * 4])


def test_facts_lie_beside_the_file(encoder, bands, tmp_path):
    path = tmp_path / "deep" / "encoder.pt2"
    export(fold(encoder, bands, image_size=16), path, "torch", notes={"model": "runs/model"})
    assert {file.name for file in path.parent.iterdir()} == {"encoder.pt2", "encoder.pt2.json"}
    facts = json.loads((path.parent / "encoder.pt2.json").read_text())
    assert facts["input"]["shape"] == ["batch", BANDS, 16, 16]
    assert facts["input"]["quantity"] == "reflectance, 0 to 1"
    assert facts["input"]["bands"] == bands.to_dict()
    assert facts["exact"] is True
    assert facts["difference_from_folded_encoder"] < 1e-5
    assert facts["model"] == "runs/model"


@needs_onnx
def test_onnx_files_hold_their_facts(encoder, bands, tmp_path):
    import onnx

    path = tmp_path / "encoder.onnx"
    export(fold(encoder, bands, image_size=16), path, "onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["specfast.input"]["bands"] == bands.to_dict()
    assert facts["specfast.exact"] is True


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is not None, reason="the ONNX packages are installed")
def test_onnx_names_its_extra(encoder, bands, tmp_path):
    with pytest.raises(ImportError, match=r'pip install "specfast\[export\]"'):
        export(fold(encoder, bands, image_size=16), tmp_path / "encoder.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("encoder.pt2", "tensorrt", "format: expected one of torch, aoti, onnx; got 'tensorrt'"),
        ("encoder.onnx", "torch", r"path: expected a name that ends in \.pt2 for torch; got encoder\.onnx"),
    ],
)
def test_what_does_not_fit_is_named(encoder, bands, tmp_path, name, format, message):
    with pytest.raises(ValueError, match=message):
        export(fold(encoder, bands, image_size=16), tmp_path / name, format)


def test_sizes_that_cannot_be_traced_are_named(encoder, bands, tmp_path):
    free, fixed = fold(encoder, content=images(1)), fold(encoder, bands, image_size=16)
    for folded, size, message in (
        (free, 8, "image_size: expected at least two patches a side, 16 pixels; got 8 x 8"),
        (free, 20, "image: expected multiples of 8 pixels; got 20 x 20"),
        (fixed, 32, "image: expected 16 x 16 pixels; got 32 x 32"),
    ):
        with pytest.raises(ValueError, match=message):
            export(folded, tmp_path / "encoder.pt2", "torch", image_size=size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["wrong numbers", "not finite", "interrupted"])
def test_a_wrong_file_leaves_the_older_one(encoder, bands, tmp_path, monkeypatch, how):
    path = tmp_path / "encoder.pt2"
    path.write_bytes(b"older")

    def write(folded, program, file):
        file.write_bytes(b"newer")
        if how == "interrupted":
            raise OSError("No space left on device")
        return lambda image: [value * 1.01 if how == "wrong numbers" else value * torch.nan for value in folded(image)]

    monkeypatch.setitem(module.FORMATS, "torch", (write, (".pt2",)))
    expected = (OSError, "No space left") if how == "interrupted" else (module.ExportError, "differs from the folded")
    with pytest.raises(expected[0], match=expected[1]):
        export(fold(encoder, bands, image_size=16), path, "torch")
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]
