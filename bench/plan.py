"""What is measured by default, and what the command line makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from bench.cases import MODES, providers_of, work_of
from bench.measure import Effort, Work
from bench.modules import MODULES
from bench.operators import OPERATORS
from bench.shapes import BASE, TINY, Shape, Sizes
from bench.step import PROVIDERS, EncoderBench, StepBench

SUITES = ("operators", "step", "scaling")
UNITS = ("operator", "module", "step", "inference")
KERNELS = (*OPERATORS, "training_step", "encoder")
EVERY = ("all",)


@dataclass(frozen=True)
class Job:
    """Rows that are measured together: one kernel at one shape and dtype, in some modes."""

    unit: str
    kernel: str
    shape: Shape
    dtype: torch.dtype
    modes: tuple[str, ...]
    providers: tuple[str, ...] | None  # None: all but those that compile; EVERY: those, too


@dataclass(frozen=True)
class Choice:
    """What the command line says; None: the plan's own."""

    quick: bool = False
    kernels: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None
    modes: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    providers: tuple[str, ...] | None = None
    batch: int | None = None
    bands: tuple[int, ...] | None = None
    side: int | None = None

    def admits(self, job: Job) -> bool:
        return job.kernel in (self.kernels or KERNELS) and job.unit in (self.units or UNITS)


def plan(suite: str, device: torch.device, choice: Choice) -> list[Job]:
    """The jobs of a suite on a device, cheap ones first."""
    gpu = device.type == "cuda"
    batch = choice.batch or (64 if gpu else 2)
    side = choice.side or (64 if choice.quick else 224)
    sizes = TINY if choice.quick else BASE
    dtypes = choice.dtypes or ((torch.bfloat16,) if gpu else (torch.float32, torch.bfloat16))
    bands = choice.bands or ((20,) if choice.quick else (100, 202, 425))
    middle = bands[len(bands) // 2]
    make = {"operators": _operators, "step": _step, "scaling": _scaling}[suite]
    jobs = make(gpu, Shape(batch, middle, side, sizes), bands, dtypes, choice.quick)
    return list(dict.fromkeys(_chosen(job, choice) for job in jobs if choice.admits(job)))


def _chosen(job: Job, choice: Choice) -> Job:
    modes = job.modes
    if choice.modes and job.unit in ("operator", "module"):
        modes = tuple(mode for mode in choice.modes if mode in modes or job.kernel != "patch_pool")
    return dataclasses.replace(job, modes=modes, providers=choice.providers or job.providers)


def _operators(gpu: bool, shape: Shape, bands: Iterable[int], dtypes, quick: bool) -> Iterator[Job]:
    for dtype in dtypes:
        brief = not gpu and dtype != dtypes[0]  # forward and backward in one row, on a CPU
        for kernel in OPERATORS:
            modes = ("full",) if brief else MODES
            if kernel == "patch_pool":
                modes = ("forward",)  # the image gets no gradient in training
            yield Job("operator", kernel, shape, dtype, modes, None)
        for kernel in MODULES:
            for count in bands:
                here = dataclasses.replace(shape, bands=count)
                # on a CPU a compilation takes longer than all else, so there is one a module
                compiled = not quick and (gpu or (dtype == torch.float32 and count == shape.bands))
                yield Job("module", kernel, here, dtype, ("full",), None if not compiled else EVERY)
                if not brief:
                    yield Job("module", kernel, here, dtype, ("forward",), None if not gpu else EVERY)


def _step(gpu: bool, shape: Shape, bands: Iterable[int], dtypes, quick: bool) -> Iterator[Job]:
    eager = ("reference", "specfast")
    for dtype in dtypes:
        for count in bands:
            here = dataclasses.replace(shape, bands=count)
            compiled = not quick and count == shape.bands and (gpu or dtype == torch.float32)
            yield Job("inference", "encoder", here, dtype, ("forward",), eager)
            yield Job("step", "training_step", here, dtype, ("full",), PROVIDERS if compiled else eager)
        if not quick and dtype == dtypes[0]:
            for samples in (shape.samples // 2, shape.samples // 4) if gpu else (1, 4):
                here = dataclasses.replace(shape, samples=samples)
                yield Job("step", "training_step", here, dtype, ("full",), eager)
                yield Job("inference", "encoder", here, dtype, ("forward",), eager)


def _scaling(gpu: bool, shape: Shape, bands: Iterable[int], dtypes, quick: bool) -> Iterator[Job]:
    """Over a 16-fold range of bands, patches and samples, around a shape where the reference fits memory."""
    steps, sides = ((1, 2, 4), (32, 64)) if quick else ((1, 2, 4, 8, 16), (56, 112, 224))
    base = dataclasses.replace(shape, samples=16 if gpu else 2, side=sides[-2])
    shapes = [dataclasses.replace(base, bands=32 * step) for step in steps]
    shapes += [dataclasses.replace(base, side=side) for side in sides]
    shapes += [dataclasses.replace(base, samples=step * (4 if gpu else 1)) for step in steps]
    if not gpu:
        shapes = [here for here in shapes if here != shape]  # which is measured with the operators
    for kernel in MODULES:
        for here in dict.fromkeys(shapes):
            yield Job("module", kernel, here, dtypes[0], ("full",), ("reference", "specfast"))


def effort(job: Job, device: torch.device, quick: bool) -> Effort:
    """How long to measure a job."""
    if quick:
        return Effort(budget_s=0.2, least=2, most=3)
    if device.type == "cuda":
        return Effort(budget_s=0.5, least=5, most=50)
    return Effort(budget_s=2.5 if job.unit in ("operator", "module") else 10.0, least=3, most=15)


class Builder:
    """Makes the works of jobs; models are kept from one job to the next."""

    def __init__(self, device: torch.device):
        self.device = device
        self.models: dict[tuple, StepBench | EncoderBench] = {}

    def works(self, job: Job) -> Iterator[tuple[str, Work]]:
        """Each mode of the job, with its work."""
        if job.unit in ("step", "inference"):
            bench = self._model(job.unit, job.shape.sizes, job.shape.side)
            providers = job.providers or ("reference", "specfast")
            known = [name for name in providers if name in PROVIDERS]
            yield from ((mode, bench.work(job.shape, job.dtype, known)) for mode in job.modes)
            return
        make = (OPERATORS if job.unit == "operator" else MODULES)[job.kernel]
        case = make(job.shape, job.dtype, self.device)
        known = providers_of(case, self.device)
        if job.providers == EVERY:
            chosen = known
        else:
            names = job.providers or [name for name in known if not name.endswith("-compile")]
            chosen = [name for name in names if name in known]
        yield from (
            (mode, work_of(case, job.unit, job.kernel, mode, job.shape, job.dtype, chosen)) for mode in job.modes
        )

    def _model(self, unit: str, sizes: Sizes, side: int) -> StepBench | EncoderBench:
        key = (unit, sizes, side)
        if key not in self.models:
            self.models[key] = (StepBench if unit == "step" else EncoderBench)(sizes.model, self.device, side)
        return self.models[key]
