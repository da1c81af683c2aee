"""Where pixels lie and how large they are: affine transforms, the map info of ENVI headers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from specfast.data.units import meters_per_degree

Transform = tuple[float, float, float, float, float, float]
_METERS = {"meters": 1.0, "metres": 1.0, "meter": 1.0, "m": 1.0, "feet": 0.3048, "km": 1000.0, "kilometers": 1000.0}


@dataclass
class GeoReference:
    """GSD in m, reference system as text, transform, and what was assumed."""

    gsd: float | None = None
    crs: str | None = None
    transform: Transform | None = None
    notes: list[str] = field(default_factory=list)


def gsd_of(transform: Transform, *, degrees: bool, meters_per_unit: float = 1.0) -> tuple[float | None, list[str]]:
    """Return the side of a pixel in m (of the square with its area), and what was assumed.

    Args:
        transform: (a, b, c, d, e, f), see SpectralImage.
        degrees: whether coordinates are longitude and latitude.
        meters_per_unit: of coordinates that are not degrees.
    """
    a, b, _, d, e, f = transform
    across, along = math.hypot(a, d), math.hypot(b, e)
    notes = []
    if degrees:
        east, north = meters_per_degree(f)
        across, along = math.hypot(a * east, d * north), math.hypot(b * east, e * north)
        notes.append(f"gsd: pixel size in degrees, converted to m at latitude {f:.2f}")
    else:
        across, along = across * meters_per_unit, along * meters_per_unit
    gsd = math.sqrt(across * along)
    if not 0 < gsd < math.inf:
        return None, ["gsd: the pixel size of the georeference is not a positive number and is not used"]
    if abs(across - along) > 0.01 * gsd:
        notes.append(f"gsd: pixels of {across:.4g} x {along:.4g} m, taken as squares of the same area")
    return float(f"{gsd:.10g}"), notes


def from_map_info(text: str, coordinate_system: str | None = None) -> GeoReference:
    """Read an ENVI header's map info (and coordinate system string); what cannot be read is left out and said."""
    items = [item.strip() for item in text.strip().strip("{}").split(",")]
    words = dict(item.lower().split("=", 1) for item in items if "=" in item)
    words = {key.strip(): value.strip() for key, value in words.items()}
    plain = [item for item in items if "=" not in item]
    try:
        x_reference, y_reference, easting, northing, x_size, y_size = (float(value) for value in plain[1:7])
        turn = math.radians(float(words.get("rotation", 0.0)))
    except ValueError:
        return GeoReference(notes=[f"map info {text.strip()[:60]!r} cannot be read and is not used"])
    # ENVI counts pixels from 1 and turns counterclockwise.
    a, b = math.cos(turn) * x_size, math.sin(turn) * y_size
    d, e = math.sin(turn) * x_size, -math.cos(turn) * y_size
    column, row = x_reference - 1, y_reference - 1
    transform = (a, b, easting - a * column - b * row, d, e, northing - d * column - e * row)
    projection, unit = plain[0].lower(), words.get("units", "")
    crs = coordinate_system.strip().strip("{}").strip() if coordinate_system else None
    degrees = unit.startswith("deg") or (not unit and "geographic" in projection)
    if not degrees and not unit and projection in ("arbitrary", ""):
        return GeoReference(None, crs, transform, ["gsd: the map info has no unit; its pixel size is not used"])
    gsd, notes = gsd_of(transform, degrees=degrees, meters_per_unit=_METERS.get(unit, 1.0))
    if not degrees and unit not in _METERS:
        notes.append(f"gsd: map info in {unit or 'no unit'}, taken as m")
    return GeoReference(gsd, crs or _crs_from_names(projection, plain), transform, notes)


def _crs_from_names(projection: str, plain: list[str]) -> str | None:
    """Return an EPSG code for the two systems that headers without a coordinate system string mostly use."""
    datum = re.sub(r"[^a-z0-9]", "", " ".join(plain[7:]).lower())
    if "wgs84" not in datum:
        return None
    if projection == "utm" and len(plain) > 8 and plain[7].isdigit():
        return f"EPSG:{(327 if plain[8].lower().startswith('s') else 326) * 100 + int(plain[7])}"
    return "EPSG:4326" if "geographic" in projection else None
