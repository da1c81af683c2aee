"""Model cards, and uploads through huggingface_hub's interface."""

from __future__ import annotations

import inspect
import sys
import types

import pytest
import torch
import yaml

import specfast
from specfast.integrations import hub
from tests.models.conftest import make_model


class Api:
    """What is asked of huggingface_hub.HfApi; keeps the files that an upload would send."""

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        self.calls.append(("create_repo", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns):
        self.calls.append(("upload_folder", repo_id, commit_message))
        sent = {path.name: path.read_bytes() for path in folder_path.iterdir() if path.name in allow_patterns}
        self.files.update(sent)
        return types.SimpleNamespace(commit_url=f"https://example.org/{repo_id}/commit/1")


@pytest.fixture
def api(monkeypatch):
    module = types.ModuleType("huggingface_hub")
    module.HfApi = type("HfApi", (Api,), {"calls": [], "files": {}})
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module.HfApi


def front_matter(text: str) -> dict:
    _, header, _ = text.split("---\n", 2)
    return yaml.safe_load(header)


def test_a_card_has_the_hub_s_metadata_and_loads_the_model(tmp_path):
    folder = hub.save_with_card(make_model(), tmp_path / "model", license="apache-2.0", sensors=["EnMAP"], tags=["mae"])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    text = (folder / "README.md").read_text()
    header = front_matter(text)
    assert header["library_name"] == "specfast"
    assert header["pipeline_tag"] == "image-feature-extraction"
    assert header["license"] == "apache-2.0"
    assert {"hyperspectral", "remote-sensing", "mae"} <= set(header["tags"])
    assert "| Encoder | width 32, 2 blocks, 2 heads |" in text
    assert "| Sensors | EnMAP |" in text
    assert 'specfast.SpecAwareMAE.from_pretrained("THIS_REPOSITORY")' in text
    assert specfast.SpecAwareMAE.from_pretrained(folder).config.depth == 2


def test_a_task_model_s_card(tmp_path):
    sizes = {"embed_dim": 32, "depth": 4, "num_heads": 2, "image_size": 32}
    model = specfast.create_model("specaware_tiny_patch8", task="segmentation", outputs=["corn", "oats"], **sizes)
    text = (hub.save_with_card(model, tmp_path / "crops") / "README.md").read_text()
    assert front_matter(text)["pipeline_tag"] == "image-segmentation"
    assert "license" not in front_matter(text)
    assert text.count("\n# crops\n") == 1
    assert "| Outputs | corn, oats |" in text


@pytest.mark.parametrize(
    ("task", "options"),
    [("encoder", {}), ("segmentation", {"outputs": ["corn", "oats"]}), ("change", {"outputs": ["change"]})],
)
def test_the_card_s_code_runs(tmp_path, monkeypatch, task, options):
    sizes = {"image_size": 32, "embed_dim": 32, "depth": 4, "num_heads": 2}
    model = specfast.create_model("specaware_tiny_patch16", task=task, **sizes, **options)
    text = (hub.save_with_card(model, tmp_path / "model") / "README.md").read_text()
    values = torch.rand(3, 224, 224).numpy()
    tables = {"wavelength": [450, 550, 650], "fwhm": [9, 9, 9]}
    image = specfast.data.SpectralImage.from_array(values, **tables, gsd=30, sensor="avc", level="L2")
    opened = []
    monkeypatch.setattr(specfast.data, "open", lambda path: opened.append(path) or image)
    code = text.split("```python\n")[1].split("```")[0].replace("THIS_REPOSITORY", str(tmp_path / "model"))
    names = {}
    with torch.no_grad():
        exec(code, names)
    assert names["out"] is not None
    assert opened == (["before.hdr", "after.hdr"] if task == "change" else ["scene.hdr"])


def test_the_card_s_code_names_exist():
    names = ("MAE", "Encoder", "Segmenter", "Classifier", "Regressor", "ChangeDetector")
    assert all(hasattr(specfast, f"SpecAware{name}") for name in names)
    assert callable(specfast.data.open)


def test_a_model_is_uploaded_with_a_card(api):
    address = hub.push_to_hub(make_model("encoder"), "user/encoder", private=True, license="mit")
    assert address == "https://example.org/user/encoder/commit/1"
    assert api.calls == [
        ("create_repo", "user/encoder", True, True),
        ("upload_folder", "user/encoder", "Upload with specfast"),
    ]
    assert set(api.files) == {"README.md", "config.json", "model.safetensors"}
    card = api.files["README.md"].decode()
    assert 'specfast.SpecAwareEncoder.from_pretrained("user/encoder")' in card
    assert "\n# encoder\n" in card


def test_a_folder_is_uploaded_as_it_is(api, tmp_path):
    folder = make_model("encoder").save_pretrained(tmp_path / "model")
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("private")
    hub.push_to_hub(folder, "user/encoder")
    assert api.files["README.md"] == b"mine"
    assert "notes.txt" not in api.files
    assert api.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_folder_without_a_model_is_not_uploaded(api, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        hub.push_to_hub(tmp_path, "user/encoder")
    assert api.calls == []


def test_the_hub_s_absence_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "specfast\[hub\]"'):
        hub.push_to_hub(make_model("encoder"), "user/encoder")


def test_what_was_uploaded_is_loaded_by_name(api, tmp_path, monkeypatch):
    model = make_model("encoder")
    hub.push_to_hub(model, "user/encoder")
    downloaded = tmp_path / "snapshot"
    downloaded.mkdir()
    for name, content in api.files.items():
        (downloaded / name).write_bytes(content)
    sys.modules["huggingface_hub"].snapshot_download = lambda name, allow_patterns: str(downloaded)
    again = specfast.SpecAwareEncoder.from_pretrained("user/encoder")
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))


def test_huggingface_hub_takes_these_arguments(require):
    api = require("huggingface_hub", "hub").HfApi
    for method in ("create_repo", "upload_folder"):
        ours, theirs = (inspect.signature(getattr(cls, method)).parameters for cls in (Api, api))
        assert set(ours) <= set(theirs), method
