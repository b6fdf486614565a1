"""How many blocks of a kernel a multiprocessor holds at once.

Limits: CUDA Programming Guide, table "Technical Specifications per Compute Capability".
Rules of rounding: the header `cuda_occupancy.h` of the CUDA toolkit.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
REGISTERS = 65536  # per multiprocessor
REGISTER_UNIT = 256  # registers are handed to a warp in units of this many
PARTITIONS = 4  # a warp's registers lie in one of the multiprocessor's four parts
SHARED_UNIT = 128
SHARED_RESERVED = 1024  # taken by the system for each block


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor."""

    warps: int
    blocks: int
    shared: int  # bytes


LIMITS = {
    "8.0": Limits(64, 32, 164 * 1024),
    "9.0": Limits(64, 32, 228 * 1024),
    "10.0": Limits(64, 32, 228 * 1024),
    "12.0": Limits(48, 24, 100 * 1024),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps on one multiprocessor, and what keeps them from being more."""

    blocks: int
    warps: int
    limit: str


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def occupancy(arch: str, registers: int, n_threads: int, shared: int) -> Occupancy:
    """The occupancy of a kernel.

    Args:
        arch: a key of `LIMITS`.
        registers: per thread.
        n_threads: of a block.
        shared: bytes of a block, static and dynamic.

    Returns:
        Zero blocks where a block does not fit.
    """
    limits = LIMITS[arch]
    warps = -(-n_threads // WARP)
    per_warp = _up(max(registers, 1) * WARP, REGISTER_UNIT)
    register_warps = REGISTERS // PARTITIONS // per_warp * PARTITIONS
    # a launch is checked as if every part held as many of the block's warps as the fullest
    by_registers = register_warps // warps if per_warp * _up(warps, PARTITIONS) <= REGISTERS else 0
    allowed = {
        "blocks": limits.blocks,
        "warps": limits.warps // warps,
        "registers": by_registers,
        "shared memory": limits.shared // _up(shared + SHARED_RESERVED, SHARED_UNIT),
    }
    limit = min(allowed, key=lambda name: allowed[name])
    return Occupancy(allowed[limit], allowed[limit] * warps, limit)
