"""SpectralLoader: batches of random crops and band subsets from stores, the same ones whatever runs beside it."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import operator
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from specfast.batch import SpectralBatch
from specfast.data.sampling import Draw, draw_sample, tile_order
from specfast.data.sensors import model_name
from specfast.data.store import SpectralStore
from specfast.data.store_format import SceneRecord
from specfast.errors import DataError


class SpectralLoader:
    """Iterator over :class:`SpectralBatch` of random parts of the tiles of one or more stores.

    Samples are numbered through all steps and ranks: sample ``position`` of ``rank`` at ``step`` has the number
    ``(step * world_size + rank) * batch_size + position``, and everything about it is a pure function of the seed and
    that number. So batches are bitwise the same for any number of workers and after a resume, and one rank with batch 4
    sees at each step what two ranks with batch 2 see together.

    One pass takes every tile once, over all ranks together, in an order drawn anew for each pass: sources have the
    weight of their number of tiles, and ranks draw different tiles (a batch that spans the end of a pass, or is larger
    than the data, may meet a tile again, with another crop). Sensors, band counts and sizes mix in one batch.

    Args:
        stores: a store, its path, or several of either.
        batch_size: samples a batch and rank.
        crop: side of the square window, a multiple of ``patch_size`` (published: 224); a smaller tile is taken whole.
        bands: how many bands of each sample (published: about 100), or (smallest, largest) of which one is drawn for
            each sample, or None for all. The subset keeps the order of the file. Samples with fewer bands give all.
        seed: 0 to 2**64 - 1.
        rank, world_size: this process among those that train together.
        workers: threads that read; 0 reads in the calling thread. Reading releases Python's global lock.
        prefetch: batches made ahead of the one in use.
        flips: flip rows and columns at random.
        patch_size: batches are padded with invalid pixels to multiples of it.

    Raises:
        ValueError: an argument is out of range. DataError: a store cannot be opened.
    """

    def __init__(
        self,
        stores: SpectralStore | str | os.PathLike | Sequence,
        *,
        batch_size: int,
        crop: int = 224,
        bands: int | tuple[int, int] | None = 100,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 2,
        prefetch: int = 2,
        flips: bool = True,
        patch_size: int = 8,
    ):
        if isinstance(stores, (SpectralStore, str, os.PathLike)):
            stores = [stores]
        self.stores = [s if isinstance(s, SpectralStore) else SpectralStore.open(s) for s in stores]
        if not self.stores:
            raise ValueError("stores: expected at least one, got none")
        for name, value, low in (
            ("batch_size", batch_size, 1),
            ("patch_size", patch_size, 1),
            ("crop", crop, 1),
            ("world_size", world_size, 1),
            ("workers", workers, 0),
            ("prefetch", prefetch, 0),
        ):
            if operator.index(value) < low:
                raise ValueError(f"{name}: expected at least {low}, got {value}")
        if crop % patch_size:
            raise ValueError(f"crop: expected a multiple of patch_size {patch_size}, got {crop}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1}, got {rank}")
        if not 0 <= operator.index(seed) < 2**64:
            raise ValueError(f"seed: expected 0 to 2**64 - 1, got {seed}")
        self.batch_size, self.crop, self.bands, self.seed = batch_size, crop, _band_range(bands), seed
        self.rank, self.world_size = rank, world_size
        self.workers, self.prefetch, self.flips, self.patch_size = workers, prefetch, flips, patch_size
        self.step = 0
        self._first = list(itertools.accumulate((len(store) for store in self.stores), initial=0))
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: tile_order(seed, epoch, self.tiles))

    @property
    def tiles(self) -> int:
        """Number of tiles of all stores."""
        return self._first[-1]

    @property
    def samples_per_step(self) -> int:
        """Samples of all ranks at one step."""
        return self.batch_size * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every tile was taken once."""
        return -(-self.tiles // self.samples_per_step)

    def __iter__(self) -> Iterator[SpectralBatch]:
        """Yield batches from the current step on, without end."""
        return self._batches(itertools.count(self.step))

    def epoch(self) -> Iterator[SpectralBatch]:
        """Yield the batches that are left of the current pass over the data (``steps_per_epoch`` at its start)."""
        end = (self.step // self.steps_per_epoch + 1) * self.steps_per_epoch
        return self._batches(range(self.step, end))

    def batch(self, step: int) -> SpectralBatch:
        """Return this rank's batch of any step; does not move the loader."""
        build = _Build(self, step)
        for position in range(self.batch_size):
            build.read(position)
        return build.result()

    def state_dict(self) -> dict:
        """Return what :meth:`load_state_dict` needs to go on with the batch after the last one taken."""
        return {"samples": self.step * self.samples_per_step, "seed": self.seed, "data": self._fingerprint()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where another loader stood; iterators made before keep their place.

        The number of ranks and the batch size may differ as long as the samples drawn so far fill whole steps.

        Raises:
            ValueError: the state belongs to another seed or other data, or stands within a step of this loader.
        """
        missing = {"samples", "seed", "data"} - set(state)
        if missing:
            raise ValueError(f"loader state: {', '.join(sorted(missing))} missing")
        if state["seed"] != self.seed:
            raise ValueError(f"loader state: made with seed {state['seed']}, this loader has {self.seed}")
        if state["data"] != self._fingerprint():
            raise ValueError("loader state: made with other data; the stores or their tiles changed since")
        step, rest = divmod(int(state["samples"]), self.samples_per_step)
        if rest:
            raise ValueError(
                f"loader state: {state['samples']} samples drawn are no whole number of steps of "
                f"{self.batch_size} x {self.world_size} samples"
            )
        self.step = step

    def _fingerprint(self) -> str:
        return hashlib.sha256(" ".join(store.fingerprint for store in self.stores).encode()).hexdigest()[:16]

    def _batches(self, steps) -> Iterator[SpectralBatch]:
        if self.workers == 0:
            for step in steps:
                batch = self.batch(step)
                self.step = step + 1
                yield batch
            return
        steps = iter(steps)
        pending: deque[tuple[int, Future]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="specfast-loader")
        try:
            while True:
                for step in itertools.islice(steps, self.prefetch + 1 - len(pending)):
                    pending.append((step, self._submit(pool, step)))
                if not pending:
                    return
                step, future = pending.popleft()
                batch = future.result()
                self.step = step + 1
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, step: int) -> Future:
        # Each task waits only for tasks submitted before it; the pool is first in, first out, so none can lock up.
        build = pool.submit(_Build, self, step)
        reads = [pool.submit(lambda p=position: build.result().read(p)) for position in range(self.batch_size)]

        def finish() -> SpectralBatch:
            for read in reads:
                read.result()
            return build.result().result()

        return pool.submit(finish)

    def _locate(self, number: int) -> tuple[SpectralStore, int]:
        """Return the store, and the tile in it, of a sample."""
        epoch, place = divmod(number, self.tiles)
        tile = int(self._order(epoch)[place])
        store = bisect.bisect_right(self._first, tile) - 1
        return self.stores[store], tile - self._first[store]


class _Build:
    """A batch being made: the parts are drawn first, so that each is read straight to its place in the packed image."""

    def __init__(self, loader: SpectralLoader, step: int):
        first = (step * loader.world_size + loader.rank) * loader.batch_size
        self.parts: list[tuple[SpectralStore, int, Draw]] = []
        for number in range(first, first + loader.batch_size):
            store, tile = loader._locate(number)
            draw = draw_sample(
                loader.seed,
                number,
                store.tile(tile).shape,
                crop=loader.crop,
                bands=loader.bands,
                flips=loader.flips,
                valid=functools.partial(store.read_valid, tile),
            )
            self.parts.append((store, tile, draw))
        patch = loader.patch_size
        sizes = [draw.window[2:] for _, _, draw in self.parts]
        height, width = (-(-max(side) // patch) * patch for side in zip(*sizes, strict=True))
        self.extent = torch.tensor(sizes) if any(size != (height, width) for size in sizes) else None
        self.counts = tuple(len(draw.bands) for _, _, draw in self.parts)
        self.first = [0, *itertools.accumulate(self.counts)]
        self.image = torch.empty(self.first[-1], height, width)
        self.valid = torch.zeros(len(self.parts), height, width, dtype=torch.bool)

    def read(self, position: int) -> None:
        """Read one sample to its place."""
        store, tile, draw = self.parts[position]
        _, _, height, width = draw.window
        try:
            place = self.image[self.first[position] : self.first[position + 1]]
            store.read(tile, draw.window, draw.bands, flip=draw.flip, out=place[:, :height, :width])
            place[:, height:].zero_()
            place[:, :height, width:].zero_()
            mask = store.read_valid(tile, draw.window)
            if mask is None:
                self.valid[position, :height, :width] = True
            else:
                mask = mask[:: -1 if draw.flip[0] else 1, :: -1 if draw.flip[1] else 1]
                self.valid[position, :height, :width] = torch.from_numpy(np.ascontiguousarray(mask))
        except (DataError, OSError, ValueError) as error:
            raise DataError(f"tile {store.tile(tile).name}: {error}") from error
        except Exception as error:
            error.add_note(f"while reading tile {store.tile(tile).name}")
            raise

    def result(self) -> SpectralBatch:
        """Return the batch; every sample has been read."""
        scenes: list[SceneRecord] = [store.tile(tile).scene for store, tile, _ in self.parts]
        chosen = list(zip(scenes, (draw.bands for _, _, draw in self.parts), strict=True))
        return SpectralBatch.from_packed(
            self.image,
            torch.from_numpy(np.concatenate([np.float32(scene.wavelength)[bands] for scene, bands in chosen])),
            torch.from_numpy(np.concatenate([np.float32(scene.fwhm)[bands] for scene, bands in chosen])),
            self.counts,
            torch.tensor([scene.gsd for scene in scenes]),
            [model_name(scene.sensor) for scene in scenes],
            [scene.level for scene in scenes],
            None if bool(self.valid.all()) else self.valid,
            self.extent,
        )


def _band_range(bands) -> tuple[int, int] | None:
    if bands is None:
        return None
    low, high = (bands, bands) if not isinstance(bands, Sequence) else bands
    if not 1 <= operator.index(low) <= operator.index(high):
        raise ValueError(f"bands: expected a number, or (smallest, largest) from 1 up, got {bands}")
    return low, high
