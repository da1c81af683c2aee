"""What a run says while it goes: a CSV that survives a crash, TensorBoard if asked for, one line of progress."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from specfast.files import atomic_file


@dataclass(frozen=True)
class Row:
    """What is logged of one update.

    Attributes:
        step: updates done, from 1.
        loss, loss_spectral, loss_charbonnier: over all samples of the update, all processes together.
        lr: learning rate; grad_norm: norm of the gradient before clipping.
        samples: samples seen so far, all processes together.
        samples_per_second: since the row before; seconds: training time so far.
    """

    step: int
    loss: float
    loss_spectral: float
    loss_charbonnier: float
    lr: float
    grad_norm: float
    samples: int
    samples_per_second: float
    seconds: float


NAMES = tuple(field.name for field in fields(Row))
_WHOLE = ("step", "samples")


def read_log(path: str | os.PathLike, names: Sequence[str] = NAMES) -> list[dict[str, float]]:
    """Return the complete rows of a log.csv, by column name; a last line that was cut off is left out.

    Args:
        path: the file.
        names: its columns; by default those of a pre-training run.

    Raises:
        ValueError: the file has other columns.
    """
    text = Path(path).read_text()
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not lines:
        return []
    if tuple(lines[0]) != tuple(names):
        raise ValueError(f"{path}: expected the columns {','.join(names)}; got {','.join(lines[0])}")
    try:
        return [_numbers(line, names) for line in lines[1:]]
    except ValueError:
        raise ValueError(f"{path}: holds a line that is no row of {len(names)} numbers") from None


def _numbers(words: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    return {name: int(v) if name in _WHOLE else float(v) for name, v in zip(names, words, strict=True)}


class CsvLog:
    """Rows of a CSV file; each is handed to the system when written, so a killed process loses none.

    Rows after ``step`` are cut from a file that is there already: they belong to updates that will be done again.
    A row is a dataclass with the fields ``names``.
    """

    def __init__(self, path: Path, step: int, names: Sequence[str] = NAMES):
        self.path, self.names = path, tuple(names)
        self.rows = [row for row in (read_log(path, names) if path.is_file() else []) if row["step"] <= step]
        with atomic_file(path) as file:
            file.write(self._line(self.names).encode())
            file.writelines(self._line(self._text(row.values())).encode() for row in self.rows)
        self._file = open(path, "a", newline="")  # noqa: SIM115 (closed by close)

    def write(self, row) -> None:
        """Append a row."""
        text = self._text(astuple(row))
        self._file.write(self._line(text))
        self._file.flush()
        self.rows.append(_numbers(text, self.names))

    def sync(self) -> None:
        """Have all rows on disk before returning."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _text(values) -> list[str]:
        return [str(v) if isinstance(v, int) else format(v, ".9g") for v in values]  # 9 digits: float32 exactly

    @staticmethod
    def _line(words) -> str:
        return ",".join(words) + "\n"


class RunLog:
    """CSV, TensorBoard and progress bar of one run; used by the main process only.

    Args:
        folder: receives ``log.csv`` and, with ``tensorboard``, ``tensorboard/``.
        step, steps: updates done, and of the whole run.
        progress: show a bar with loss, samples a second and the time left on stderr.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, *, step: int, steps: int, progress: bool, tensorboard: bool):
        self._events = _event_writer(folder / "tensorboard", step) if tensorboard else None
        self._csv = CsvLog(folder / "log.csv", step)
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            initial=step,
            disable=not progress,
            unit="step",
            desc="pretrain",
            dynamic_ncols=on_terminal,
            mininterval=0.5 if on_terminal else 30.0,
        )

    @property
    def history(self) -> list[dict[str, float]]:
        """All rows, those from before a resume too."""
        return self._csv.rows

    def write(self, row: Row) -> None:
        """Log an update."""
        self._csv.write(row)
        if self._events is not None:
            for name in NAMES[1:]:
                self._events.add_scalar(f"train/{name}", getattr(row, name), row.step)
        self._bar.set_postfix_str(f"loss {row.loss:.4f}, {row.samples_per_second:.1f} samples/s", refresh=False)

    def advance(self) -> None:
        """Move the bar on by one update."""
        self._bar.update()

    def say(self, text: str) -> None:
        """Print a line above the bar, if progress is shown."""
        if not self._bar.disable:
            tqdm.write(text, file=sys.stderr)

    def sync(self) -> None:
        """Have everything logged on disk before returning."""
        self._csv.sync()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        self._bar.close()
        self._csv.close()
        if self._events is not None:
            self._events.close()


def _event_writer(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError('tensorboard: not installed; pip install "specfast[tensorboard]"') from None
    return SummaryWriter(str(folder), purge_step=step + 1)
