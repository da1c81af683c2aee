"""What ``python -m specfast`` prints: versions, devices, the compiled extension, optional packages, settings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable

import torch

from specfast import __version__, _native

# Every environment variable that specfast reads: the one table of them.
VARIABLES = {
    "SPECFAST_BACKEND": "auto, cpu, triton, cuda or eager: the backend that operators prefer",
    "SPECFAST_CUDA_ARCHS": "architectures the CUDA kernels are compiled for at install, such as '80 90a 100'",
    "SPECFAST_DEBUG": "1: the command line shows tracebacks",
    "SPECFAST_NO_CUDA": "1: install without the CUDA kernels, although nvcc is there",
    "SPECFAST_NO_EXT": "1: install without, or run without, the C++ extension",
    "SPECFAST_TEXT_MODEL": "sentence model for sensors without a published description (name or folder)",
}

# Extra: what it gives, and the import name of each of its packages by distribution name.
EXTRAS = {
    "geo": ("GeoTIFF, coordinate systems", {"rasterio": "rasterio"}),
    "hdf": ("NetCDF, HDF5, MATLAB 7.3", {"h5py": "h5py", "h5netcdf": "h5netcdf"}),
    "zarr": ("embeddings as Zarr", {"zarr": "zarr"}),
    "plot": ("pictures", {"matplotlib": "matplotlib"}),
    "probe": ("probes of frozen features", {"scikit-learn": "sklearn"}),
    "demo": (
        "the demo and its scene",
        {"tensorly": "tensorly", "matplotlib": "matplotlib", "scikit-learn": "sklearn"},
    ),
    "text": ("descriptions of any sensor", {"sentence-transformers": "sentence_transformers"}),
    "tensorboard": ("training curves", {"tensorboard": "tensorboard"}),
    "lightning": ("modules, DS-Sync as a callback", {"lightning": "lightning"}),
    "export": ("ONNX files", {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}),
    "hub": ("models of the Hugging Face hub", {"huggingface-hub": "huggingface_hub"}),
    "terratorch": ("a backbone of TerraTorch", {"terratorch": "terratorch"}),
}


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Lay out (name, text) pairs as two indented columns."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def report() -> str:
    """Return the environment report as text. Imports no optional package and needs no GPU."""
    sections = {
        "Versions": _versions(),
        "Processors": _processors(),
        "Optional packages": _extras(),
        "Environment variables": _variables(),
    }
    return "\n\n".join(f"{title}\n{table(rows)}" for title, rows in sections.items())


def _versions() -> list[tuple[str, str]]:
    return [
        ("specfast", f"{__version__} ({os.path.dirname(__file__)})"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("numpy", _version("numpy") or "absent"),
        ("Triton", _version("triton") or "absent (needed only on a GPU)"),
    ]


def _processors() -> list[tuple[str, str]]:
    module, reason = _native.load()
    if module is None:
        extension = reason
    else:
        openmp = f"OpenMP, {module.openmp_threads()} threads" if module.openmp() else "no OpenMP, 1 thread"
        cuda = f"CUDA {', '.join(module.cuda_architectures())}" if module.cuda_built() else "no CUDA kernels"
        extension = f"built ({module.cpu_capability()}, {openmp}, {cuda})"
    rows = [
        (
            "CPU",
            f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        ),
        ("specfast._C", extension),
    ]
    if not torch.cuda.is_available():
        built_for = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        return [*rows, ("GPU", f"none usable ({built_for})")]
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        text = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, compute capability {device.major}.{device.minor}"
        rows.append((f"GPU {number}", text))
    return rows


def _extras() -> list[tuple[str, str]]:
    rows = []
    for extra, (purpose, modules) in EXTRAS.items():
        absent = [name for name, module in modules.items() if importlib.util.find_spec(module) is None]
        present = ", ".join(f"{name} {_version(name)}" for name in modules if name not in absent)
        cure = f'absent: {", ".join(absent)}; pip install "specfast[{extra}]"' if absent else ""
        rows.append((extra, f"{purpose}: {'; '.join(filter(None, (present, cure)))}"))
    return rows


def _variables() -> list[tuple[str, str]]:
    return [(name, f"{os.environ.get(name, 'not set')} ({meaning})") for name, meaning in VARIABLES.items()]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
