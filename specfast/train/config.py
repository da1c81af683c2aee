"""PretrainConfig: every option of a pre-training run, from YAML, flags or Python, checked in one place."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specfast.dssync.schedule import KINDS

PUBLISHED = "published"  # stated for SpecAware (Ji et al. 2026)
OURS = "our choice"


def _option(default: Any, check: Callable, text: str, *, origin: str = OURS, unit: str = "", fixed: bool = True):
    """Declare an option; ``fixed`` ones must be the same when a run is resumed."""
    metadata = {"check": check, "help": text, "origin": origin, "unit": unit, "fixed": fixed}
    return dataclasses.field(**{"default_factory" if callable(default) else "default": default}, metadata=metadata)


def _number(low: float = -math.inf, high: float = math.inf, *, whole: bool = False, above: bool = False) -> Callable:
    kind = "a whole number" if whole else "a number"
    limits = f"above {low:g}" if above else f"of at least {low:g}"
    expected = f"{kind} {limits}" + (f" and at most {high:g}" if high < math.inf else "")

    def check(value):
        number = _parsed(value, int if whole else float)
        if number is None or not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise ValueError(expected)
        return number

    return check


def _parsed(value, kind: type) -> float | int | None:
    """Return the number that is meant, or None; YAML reads 1e-4, which has no dot, as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if kind is int and isinstance(value, int):
        return value  # a float would not hold a large seed
    try:
        if kind is int and isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        number = float(value)
    except ValueError:
        return None
    if kind is int:
        return int(number) if number.is_integer() else None
    return number


def _choice(*names: str) -> Callable:
    def check(value):
        if value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return check


def _flag(value):
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _name(value):
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError("a name or path")
    return os.fspath(value)


def _name_or_none(value):
    return None if value is None else _name(value)


def _names(value):
    names = [value] if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(names, (list, tuple)):
        raise ValueError("a path or a list of paths")
    return tuple(_name(name) for name in names)


def _bands(value):
    expected = "a whole number of at least 1, [smallest, largest], or null for all bands"
    if value is None:
        return None
    limits = [_parsed(limit, int) for limit in (value if isinstance(value, (list, tuple)) else [value])]
    if len(limits) not in (1, 2) or None in limits or not 1 <= limits[0] <= limits[-1]:
        raise ValueError(expected)
    return limits[0] if len(limits) == 1 else tuple(limits)


def _or_none(check: Callable) -> Callable:
    def check_or_none(value):
        if value is None:
            return None
        try:
            return check(value)
        except ValueError as expected:
            raise ValueError(f"{expected}, or null") from None

    return check_or_none


def _betas(value):
    pair = [_parsed(beta, float) for beta in value] if isinstance(value, (list, tuple)) else []
    if len(pair) != 2 or not all(beta is not None and 0 <= beta < 1 for beta in pair):
        raise ValueError("two numbers from 0 to below 1")
    return tuple(pair)


# Ways for several processes to train one model; options of each, beside those that all have.
SYNC = {
    "ddp": (),
    "dssync": (
        "sync_group",
        "sync_schedule",
        "sync_topology",
        "sync_global_every",
        "sync_overlap",
        "sync_momentum",
        "sync_wire",
        "sync_domain",
    ),
    "postlocal": ("sync_global_every",),
}

_PLANNED = ("racks", "emissary", "plan")  # schedules for a known network
_SCHEDULES = (*(kind for kind in KINDS if kind not in (*_PLANNED, "static")), *_PLANNED)

_OWN_OPTIONS = ("gradient_checkpointing",)  # of the model, given as options of the run


def _mapping(value):
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("names with values")
    if taken := [key for key in _OWN_OPTIONS if key in value]:
        raise ValueError(f"{', '.join(taken)} beside it, as an option of its own")
    return dict(value)


@dataclass
class PretrainConfig:
    """Options of :func:`specfast.train.pretrain`; each field's metadata holds its help, unit and origin.

    Published for SpecAware are the crop, the patch size (part of the model's name), the mask ratio, the number of bands
    (about 100), the loss (part of the model) and that the encoder starts from an ImageNet MAE (``vit``, for which a
    file must be given). All other defaults are ours; the optimizer's follow MAE (He et al. 2022).

    Raises:
        ValueError: a value is out of range, or values do not fit each other; the message names the option.
    """

    data: tuple[str, ...] = _option((), _names, "stores made by specfast prepare", fixed=False)
    out: str = _option("runs/pretrain", _name, "folder of the run: log, checkpoints, model", fixed=False)
    model: str = _option(
        "specaware_base_patch8",
        _name,
        "a model's name, a folder written by save_pretrained, or a published checkpoint file",
        origin=PUBLISHED,
    )
    model_options: dict = _option(  # noqa: RUF009 (a field like the others)
        dict, _mapping, "options of the model that differ from its own, as depth or rank"
    )
    vit: str | None = _option(
        None, _name_or_none, "file of ImageNet MAE weights (timm's names) that the encoder's ViT starts from"
    )
    crop: int = _option(224, _number(1, whole=True), "side of the training crops", origin=PUBLISHED, unit="pixels")
    bands: int | tuple[int, int] | None = _option(
        100,
        _bands,
        "bands drawn of each sample: a number, [smallest, largest], or null for all (as a flag: all)",
        origin=PUBLISHED,
    )
    mask_ratio: float = _option(0.75, _number(0, 0.999), "share of patches removed", origin=PUBLISHED)
    flips: bool = _option(True, _flag, "flip rows and columns at random")
    steps: int = _option(100_000, _number(1, whole=True), "updates of the weights")
    batch_size: int = _option(32, _number(1, whole=True), "samples a process and forward pass")
    accumulate: int = _option(1, _number(1, whole=True), "forward passes an update")
    lr: float = _option(1.5e-4, _number(0, above=True), "largest learning rate, reached after the warm-up")
    final_lr: float = _option(0.0, _number(0), "learning rate at the end of the cosine")
    warmup: float = _option(0.05, _number(0, 1), "share of the steps in which the learning rate rises linearly")
    weight_decay: float = _option(0.05, _number(0), "decay of weight matrices, in units of the learning rate")
    betas: tuple[float, float] = _option((0.9, 0.95), _betas, "AdamW's averaging of the gradient and of its square")
    clip_norm: float = _option(1.0, _number(0), "largest norm of the gradient; 0 does not clip")
    seed: int = _option(0, _number(0, 2**63 - 1, whole=True), "fixes weights, samples, masks and dropout")
    precision: str = _option(
        "auto",
        _choice("auto", "float32", "bf16"),
        "bf16 autocast or float32; auto is bf16 where it is native",
    )
    sync: str = _option(
        "ddp",
        _choice(*SYNC),
        "how processes train one model: ddp averages gradients over all in each update; dssync averages parameters in "
        "small groups that change each update; postlocal, for comparison, is torch's PostLocalSGD: as ddp in the "
        "warm-up, then a global mean of the parameters every sync_global_every updates",
    )
    sync_group: int | None = _option(
        None, _or_none(_number(2, whole=True)), "dssync: processes a group; null leaves it to the schedule"
    )
    sync_schedule: str = _option(
        "grid",
        _choice(*_SCHEDULES),
        f"dssync: how groups are formed: {', '.join(_SCHEDULES)}; plan takes what is fastest on sync_topology",
    )
    sync_topology: str | None = _option(
        None,
        _name_or_none,
        "dssync: JSON file of the network, as specfast dssync measure writes it; needed for racks, emissary and plan",
        fixed=False,
    )
    sync_global_every: int | None = _option(
        None, _or_none(_number(1, whole=True)), "dssync, postlocal: updates between means over all processes"
    )
    sync_overlap: bool = _option(False, _flag, "dssync: average while the next update is computed")
    sync_momentum: bool = _option(False, _flag, "dssync: average the optimizer's moments, too")
    sync_wire: str = _option(
        "float32",
        _choice("float32", "bfloat16", "float8"),
        "dssync: what is sent: parameters in float32, or how they changed in fewer bits",
    )
    sync_domain: int = _option(
        1,
        _number(1, whole=True),
        "dssync: neighboring processes, on a fast network, that average their gradients before each update",
    )
    device: str = _option("auto", _name, "auto, cpu, cuda or cuda:1; auto is cuda where there is one", fixed=False)
    gradient_checkpointing: bool = _option(
        False, _flag, "recompute the blocks' activations in backward: less memory, more time", fixed=False
    )
    compile: bool = _option(False, _flag, "torch.compile the transformer blocks", fixed=False)
    workers: int = _option(2, _number(0, whole=True), "threads a process that read samples", fixed=False)
    prefetch: int = _option(2, _number(0, whole=True), "batches made ahead of the one in use", fixed=False)
    checkpoint_every: int = _option(1000, _number(1, whole=True), "updates between checkpoints", fixed=False)
    keep: int = _option(2, _number(1, whole=True), "checkpoints kept, the newest", fixed=False)
    log_every: int = _option(1, _number(1, whole=True), "updates between rows of log.csv", fixed=False)
    tensorboard: bool = _option(False, _flag, "also write TensorBoard events", fixed=False)
    resume: str = _option(
        "auto",
        _choice("auto", "never"),
        "auto goes on with the run in out, if there is one; never refuses a folder that holds one",
        fixed=False,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                setattr(self, field.name, field.metadata["check"](value))
            except ValueError as expected:
                raise ValueError(f"{field.name}: expected {expected}; got {value!r}") from None
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr: expected at most lr={self.lr:g}; got {self.final_lr:g}")
        self._check_sync()

    def _check_sync(self) -> None:
        for field in dataclasses.fields(self):
            uses = [sync for sync, options in SYNC.items() if field.name in options]
            value = getattr(self, field.name)
            if uses and self.sync not in uses and value != field.default:
                raise ValueError(f"{field.name}: only with sync {' or '.join(uses)}; got {value} with sync {self.sync}")
        if self.sync == "postlocal" and self.sync_global_every is None:
            raise ValueError(
                "sync_global_every: expected the number of updates between global means, for sync postlocal; got null"
            )
        if self.sync_schedule in _PLANNED and self.sync_topology is None:
            raise ValueError(f"sync_topology: expected a file, for sync_schedule {self.sync_schedule}; got null")

    @property
    def warmup_steps(self) -> int:
        """Updates of the warm-up."""
        return round(self.warmup * self.steps)

    def to_dict(self) -> dict:
        """Return the options as plain values that YAML and JSON hold."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping, *, source: str = "configuration") -> PretrainConfig:
        """Build from plain values.

        Raises:
            ValueError: an option is unknown (the nearest is named) or does not fit; ``source`` is named.
        """
        check_names(values, source)
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    def to_yaml(self) -> str:
        """Return YAML that says of each option what it means and where its default comes from."""
        lines = []
        for field in dataclasses.fields(self):
            unit = f", in {field.metadata['unit']}" if field.metadata["unit"] else ""
            default = self.to_dict()[field.name] == _default(field)
            origin = f" [default, {field.metadata['origin']}]" if default and field.name not in ("data", "out") else ""
            lines.append(f"# {field.metadata['help']}{unit}{origin}")
            value = self.to_dict()[field.name]
            flow = None if isinstance(value, list) else False  # lists in one line
            lines.append(yaml.safe_dump({field.name: value}, default_flow_style=flow, width=1000).rstrip("\n"))
        return "\n".join(lines) + "\n"


def check_names(values: Mapping, source: str, known: Iterable[str] | None = None) -> None:
    """Raise ValueError, naming the nearest, if a key of ``values`` is not in ``known`` (PretrainConfig's options)."""
    known = [field.name for field in dataclasses.fields(PretrainConfig)] if known is None else list(known)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"{source}: unknown option {key!r}; {hint}")


def read_yaml(path: str | os.PathLike) -> dict:
    """Return the options given in a YAML file; their values are not checked yet.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no YAML of names with values, or an option is unknown.
    """
    content = load_yaml(path)
    check_names(content, str(path))
    return content


def load_yaml(path: str | os.PathLike) -> dict:
    """Return the names with values that a YAML file holds; a hyphen in a name is read as an underscore.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no YAML of names with values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected lines of 'option: value', got a {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def resume_conflicts(saved: Mapping, saved_ranks: int, config: PretrainConfig, ranks: int) -> list[str]:
    """Name, one line each, what keeps a run from going on under ``config``: options that define its result."""
    own = config.to_dict()
    per_update = {"batch_size", "accumulate"}  # only their product with the number of processes counts
    saved = {**PretrainConfig().to_dict(), **saved}  # options that came later were at their defaults
    lines = [
        f"{field.name} is {own[field.name]!r} now and was {saved[field.name]!r}"
        for field in dataclasses.fields(config)
        if field.metadata["fixed"] and field.name not in per_update and saved[field.name] != own[field.name]
    ]
    before = saved["batch_size"] * saved["accumulate"] * saved_ranks
    now = config.batch_size * config.accumulate * ranks
    if before != now:
        lines.append(f"batch_size x accumulate x processes is {now} now and was {before}")
    if config.sync != "ddp" and saved_ranks != ranks:
        lines.append(f"processes are {ranks} now and were {saved_ranks}, and each has its own parameters")
    return lines


def _default(field: dataclasses.Field):
    value = field.default_factory() if field.default is dataclasses.MISSING else field.default
    return list(value) if isinstance(value, tuple) else value
