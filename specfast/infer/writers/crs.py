"""Reference systems as formats want them; without rasterio only what can be told from the text alone."""

from __future__ import annotations

import math
import re

from specfast.infer.raster import Grid

_UNITS = {"Meters": 1.0, "Feet": 0.3048, "Km": 1000.0}  # in m


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


def systems_differ(first: str | None, second: str | None) -> bool:
    """Whether two texts surely name different systems, however they are written; unknown ones might be the same."""
    if first is None or second is None or first == second:
        return False
    try:
        one, other = parsed_crs(first), parsed_crs(second)
    except ImportError:
        codes = [re.fullmatch(r"EPSG:(\d+)", text.strip(), re.IGNORECASE) for text in (first, second)]
        return None not in codes and int(codes[0][1]) != int(codes[1][1])
    if one is None or other is None or one == other:
        return False
    # ESRI's WKT, as ENVI headers hold it, has other names and no code; GDAL recognizes it, but is less sure.
    numbers = [crs.to_epsg(confidence_threshold=20) for crs in (one, other)]
    return numbers[0] is None or numbers[0] != numbers[1]


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
    unit, zone = unit_of(grid.crs), zone_and_datum(grid.crs) or ()
    name = "Geographic Lat/Lon" if unit == "Degrees" else "UTM" if zone else "Arbitrary"
    numbers = [f"{value:.15g}" for value in (c, f, x_size, y_size)]
    items = [name, "1", "1", *numbers, *zone]
    if unit is not None:
        items.append(f"units={unit}")
    if abs(turn) > 1e-12:
        items.append(f"rotation={math.degrees(turn):.15g}")
    return ", ".join(items)


def unit_of(crs: str | None) -> str | None:
    """The unit of a system's coordinates, as a map info names it; None if it is not known or has no name there."""
    if crs is None:
        return None
    if re.match(r"EPSG:4326$|\s*GEOG", crs, re.IGNORECASE):
        return "Degrees"
    if zone_and_datum(crs):
        return "Meters"
    try:
        known = parsed_crs(crs)
    except ImportError:  # the unit of a projection is the last of its WKT
        found = re.findall(r'UNIT\["[^"]*",\s*([0-9.eE+-]+)', crs) if re.match(r"\s*PROJ", crs) else []
        factor = float(found[-1]) if found else None
    else:
        if known is not None and known.is_geographic:
            return "Degrees"
        factor = float(known.linear_units_factor[1]) if known is not None and known.is_projected else None
    # a survey foot is not quite 0.3048 m
    return next((name for name, size in _UNITS.items() if factor and math.isclose(factor, size, rel_tol=1e-5)), None)


def zone_and_datum(crs: str | None) -> tuple[str, ...] | None:
    """What a map info says after the pixel sizes, of the systems that need no library; None for others."""
    code = re.fullmatch(r"EPSG:(\d+)", crs or "", re.IGNORECASE)
    number = int(code[1]) if code else 0
    if number // 100 in (326, 327) and 1 <= number % 100 <= 60:
        return str(number % 100), "North" if number // 100 == 326 else "South", "WGS-84"
    return ("WGS-84",) if number == 4326 else None
