"""Made-up result rows for the tests of what reads them."""

from __future__ import annotations


def row(provider: str = "specfast", milliseconds: float = 10.0, **changes) -> dict:
    values = {
        "unit": "module",
        "kernel": "hyper_embed",
        "mode": "full",
        "batch": 2,
        "bands": 202,
        "patches": 784,
        "dtype": "float32",
        "provider": provider,
        "relative_error": 1e-7,
        "peak_memory": 50_000_000,
        "p20_ms": 0.99 * milliseconds,
        "p50_ms": milliseconds,
        "p80_ms": 1.01 * milliseconds,
        "runs": 5,
        "samples_per_s": 2000 / milliseconds,
        "tflops": 0.1,
        "gbs": 1.0,
        "floor_ms": 5.0,
        "percent_of_floor": 500 / milliseconds,
        "device": "Test CPU",
        "threads": 2,
        "torch": "2.13.0",
        "specfast": "0.1.0",
        "commit": "abc1234",
        "peak_tflops": 0.18,
        "peak_gbs": 49.0,
        **changes,
    }
    return {"shape": f"B{values['batch']}-C{values['bands']}-{round(values['patches'] ** 0.5) * 8}px", **values}


def record() -> list[dict]:
    """Two kernels, a step and an encoder at three band counts, and a sweep of each axis with known slopes."""
    rows = []
    for bands in (100, 202, 425):
        for unit, kernel, mode in (
            ("module", "hyper_embed", "full"),
            ("module", "hyper_linear_loss", "full"),
            ("step", "training_step", "full"),
            ("inference", "encoder", "forward"),
        ):
            named = {"unit": unit, "kernel": kernel, "mode": mode, "bands": bands}
            rows.append(row("reference", 20.0 * bands, peak_memory=400_000_000, **named))
            rows.append(row("specfast", 1.0 * bands, **named))
    rows.append(row("conv2d", 50.0))
    for provider, slope in (("reference", 1.0), ("specfast", 0.5)):
        sweep = [{"bands": 32 * step} for step in (1, 2, 4, 8, 16)]
        sweep += [{"batch": step} for step in (1, 2, 4, 8, 16)]
        sweep += [{"patches": side**2} for side in (7, 14, 28)]
        for change in sweep:
            size = {"bands": 202, "batch": 2, "patches": 196} | change
            rows.append(row(provider, 0.01 * (size["bands"] * size["batch"] * size["patches"]) ** slope, **size))
    return rows
