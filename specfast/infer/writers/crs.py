"""Reference systems as formats want them; without rasterio only what can be told from the text alone."""

from __future__ import annotations

import math
import re

from specfast.infer.raster import Grid


def parsed_crs(text: str | None):
    """The rasterio CRS of a text; None if there is none or it cannot be understood."""
    if text is None:
        return None
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return CRS.from_string(text)
    except CRSError:
        return None


def as_wkt(text: str | None, *, esri: bool = False) -> str | None:
    """WKT of a reference system, in ESRI's dialect if asked for; without rasterio the text itself if it is WKT."""
    if text is None:
        return None
    try:
        from rasterio.enums import WktVersion
    except ImportError:
        return text if "[" in text else None
    crs = parsed_crs(text)
    if crs is None:
        return None
    return crs.to_wkt(version=WktVersion.WKT1_ESRI if esri else WktVersion.WKT2_2019)


def lost(grid: Grid, known: str | None) -> list[str]:
    """Say so if the grid names a reference system of which nothing can be written (``known`` is None)."""
    if grid.crs is None or known is not None:
        return []
    return [f"the reference system {grid.crs[:60]!r} is not understood and is left out of the file"]


def map_info(grid: Grid) -> str | None:
    """An ENVI header's map info, or None if there is no transform or it is sheared, which map info cannot say."""
    if grid.transform is None:
        return None
    a, b, c, d, e, f = grid.transform
    x_size, y_size = math.hypot(a, d), math.hypot(b, e)
    turn = math.atan2(d, a)
    sheared = abs(b - math.sin(turn) * y_size) + abs(e + math.cos(turn) * y_size) > 1e-6 * y_size
    if sheared or not x_size or not y_size:
        return None
    geographic = grid.crs is not None and bool(re.match(r"EPSG:4326$|\s*GEOG", grid.crs, re.IGNORECASE))
    zone = zone_and_datum(grid.crs) or ()
    name = "Geographic Lat/Lon" if geographic else "UTM" if zone else "Arbitrary"
    numbers = [f"{value:.15g}" for value in (c, f, x_size, y_size)]
    items = [name, "1", "1", *numbers, *zone, f"units={'Degrees' if geographic else 'Meters'}"]
    if abs(turn) > 1e-12:
        items.append(f"rotation={math.degrees(turn):.15g}")
    return ", ".join(items)


def zone_and_datum(crs: str | None) -> tuple[str, ...] | None:
    """What a map info says after the pixel sizes, of the systems that need no library; None for others."""
    code = re.fullmatch(r"EPSG:(\d+)", crs or "", re.IGNORECASE)
    number = int(code[1]) if code else 0
    if number // 100 in (326, 327) and 1 <= number % 100 <= 60:
        return str(number % 100), "North" if number // 100 == 326 else "South", "WGS-84"
    return ("WGS-84",) if number == 4326 else None
