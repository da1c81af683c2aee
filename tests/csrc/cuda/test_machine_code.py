"""What nvcc makes of the kernels for every architecture: no spills, within limits, the instructions that are meant."""

from __future__ import annotations

import re

import pytest

from tests.csrc.cuda.conftest import ARCHITECTURES

pytestmark = pytest.mark.xdist_group("cuda_cubins")  # one process compiles them

KERNELS = {"patch_pool": 6, "hyper_embed": 4, "flat_buffer": 4}  # and how many variants each has
# Threads of a block, and blocks that the registers of a multiprocessor must hold at once.
RESIDENT = {"patch_pool": (128, 6), "hyper_embed": (256, 1), "flat_buffer": (256, 5)}
REGISTERS = 65536


@pytest.fixture(params=ARCHITECTURES)
def architecture(request) -> str:
    return request.param


def functions(listing: str) -> list[str]:
    """The disassembly of each function."""
    return re.split(r"^\s*Function : ", listing, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("kernel", KERNELS)
def test_registers_and_spills(kernel, architecture, cubins, cuobjdump):
    usage = cuobjdump(cubins[kernel, architecture], "--dump-resource-usage")
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert len(found) == KERNELS[kernel]
    threads, blocks = RESIDENT[kernel]
    for registers, stack, shared, local in (map(int, numbers) for numbers in found):
        assert stack == local == 0  # arrays and spilled registers would lie there
        assert shared <= 1024  # what Hopper's and later systems take; the kernels' own is dynamic
        assert -(-registers // 8) * 8 * threads * blocks <= REGISTERS


def test_hyper_embed_uses_tensor_cores_and_matrix_loads(architecture, cubins, cuobjdump):
    for listing in functions(cuobjdump(cubins["hyper_embed", architecture], "-sass")):
        floats = re.findall(r"HMMA\.16816\.F32(\.BF16)?", listing)
        ranks = 32 if "Li32ELi64E" in listing.partition("\n")[0] else 16
        assert len(floats) == ranks // 8 * 4 + 32  # of a chunk of pixels; of sixteen bands
        assert set(floats) == ({".BF16"} if "BFloat16" in listing.partition("\n")[0] else {""})
        assert "LDGSTS.E.BYPASS.128" in listing  # 16 bytes from global to shared memory, past the registers
        assert "STG.E.128" in listing
        assert re.search(r"LDSM\.16\.M88\.4", listing)
        assert re.search(r"LDSM\.16\.MT88\.4", listing)
        assert not re.search(r"\b(LDL|STL)\b", listing)


def test_patch_pool_loads_and_copies_16_bytes(architecture, cubins, cuobjdump):
    for listing in functions(cuobjdump(cubins["patch_pool", architecture], "-sass")):
        assert "LDGSTS.E.BYPASS.128" in listing
        assert "LDS.128" in listing
        assert "STG.E.128" in listing
        assert not re.search(r"\b(LDL|STL)\b", listing)


def test_flat_buffer_moves_whole_vectors(architecture, cubins, cuobjdump):
    narrow = {  # how a lane writes its four packed elements; how it reads eight
        ("delta_pack", "Float8"): r"STG\.E ",
        ("delta_pack", "BFloat16"): r"STG\.E\.64",
        ("delta_average", "Float8"): r"LDG\.E\.64",
        ("delta_average", "BFloat16"): r"LDG\.E\.128",
    }
    for listing in functions(cuobjdump(cubins["flat_buffer", architecture], "-sass")):
        name = listing.partition("\n")[0]
        (pattern,) = (narrow[key] for key in narrow if all(part in name for part in key))
        packs = "delta_pack" in name
        assert len(re.findall(r"LDG\.E\.128", listing)) >= (6 if packs else 2)  # of three arrays; of the reference
        assert len(re.findall(r"STG\.E\.128", listing)) == 2
        assert re.search(pattern, listing)
        assert ("REDUX.MAX" in listing) == (packs and "Float8" in name)
        assert not re.search(r"\b(LDL|STL)\b", listing)
