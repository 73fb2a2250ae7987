"""Which shard and which node of a cluster each user is on.

On PostgreSQL alone all users are on one shard of one node. On Citus a user's shard follows from
PostgreSQL's hash of the user's id. It is computed here too, because asking the server would cost
each call a round trip. A map may be out of date: Citus routes every statement by its own map, so an
old map costs time, or a refused batch, but never writes to the wrong place.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from struct import unpack
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

# The account table stands for all that are split by user: their shards are colocated.
_IS_DISTRIBUTED = """
    SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL
    AND to_regclass('user_credits') IS NOT NULL
"""
_SHARDS = """
    SELECT shard.shardminvalue::bigint, shard.shardmaxvalue::bigint, placement.groupid
    FROM pg_dist_shard AS shard
    INNER JOIN pg_dist_placement AS placement ON shard.shardid = placement.shardid
    WHERE shard.logicalrelid = 'user_credits'::regclass AND placement.shardstate = 1
    ORDER BY shard.shardminvalue::bigint
"""
_HASHES = "SELECT uuid_hash(asked.id) FROM unnest($1::uuid[]) AS asked (id)"

# How many hashes are compared with the server's whenever a map is read.
_COMPARED = 100

_ALL_BITS = 0xFFFFFFFF


class ShardMapError(Exception):
    """The cluster does not split the accounts in the way that this program knows."""


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Where users are.

    Attributes:
        starts: the lowest hash of each shard, rising; empty where the book is not distributed.
        nodes: the node of each shard; nodes are counted from 0.
    """

    starts: Sequence[int] = ()
    nodes: Sequence[int] = ()

    @property
    def is_distributed(self) -> bool:
        """Whether there are shards at all."""
        return bool(self.starts)

    @property
    def node_count(self) -> int:
        """The number of nodes; 1 where the book is not distributed."""
        return max(self.nodes, default=0) + 1

    def shard_of(self, user_id: UUID) -> int:
        """The number of a user's shard, counted from 0."""
        if not self.starts:
            return 0
        return bisect_right(self.starts, hash_of(user_id)) - 1

    def node_of(self, shard: int) -> int:
        """The number of the node that a shard is on; 0 where the book is not distributed."""
        return self.nodes[shard] if self.nodes else 0

    def node_of_user(self, user_id: UUID) -> int:
        """The number of the node that a user is on; 0 where the book is not distributed."""
        return self.nodes[self.shard_of(user_id)] if self.nodes else 0


class Shards:
    """The map as last read; before the first read, and on PostgreSQL alone, a single shard.

    Attributes:
        map: the map.
        known: whether it has been read.
    """

    __slots__ = ("known", "map")

    def __init__(self) -> None:
        """Begins with a single shard."""
        self.map = ShardMap()
        self.known = False

    async def read(self, connection: asyncpg.Connection | PoolConnectionProxy) -> bool:
        """Reads the map from the server.

        Args:
            connection: to the database of the book; on Citus, to the coordinator.

        Returns:
            Whether the map has changed.

        Raises:
            ShardMapError: the accounts are distributed in a way that this program does not know.
            asyncpg.PostgresError, OSError: as the driver raises them.
        """
        found = await _read(connection)
        has_changed = found != self.map
        self.map = found
        self.known = True
        return has_changed


async def _read(connection: asyncpg.Connection | PoolConnectionProxy) -> ShardMap:
    if not await connection.fetchval(_IS_DISTRIBUTED):
        return ShardMap()
    rows = await connection.fetch(_SHARDS)
    if not rows:
        return ShardMap()
    expected = -(2**31)
    for lowest, highest, _ in rows:
        if lowest != expected:
            raise ShardMapError(f"the shards of user_credits leave out the hash {expected}")
        expected = highest + 1
    if expected != 2**31:
        raise ShardMapError(f"the shards of user_credits leave out the hash {expected}")
    ids = [uuid4() for _ in range(_COMPARED)]
    hashes = [row[0] for row in await connection.fetch(_HASHES, ids)]
    if hashes != [hash_of(user_id) for user_id in ids]:
        raise ShardMapError("the server computes other hashes of UUIDs than this program")
    groups = sorted({row[2] for row in rows})
    return ShardMap(tuple(row[0] for row in rows), tuple(groups.index(row[2]) for row in rows))


def hash_of(user_id: UUID) -> int:
    """PostgreSQL's `uuid_hash`, a signed number of 32 bits.

    It is Bob Jenkins' lookup3 over the 16 bytes, as in `hash_bytes` of src/common/hashfn.c, on a
    little-endian machine.
    """
    words: tuple[int, int, int, int] = unpack("<4I", user_id.bytes)
    first, second, third, fourth = words
    start = 0x9E3779B9 + 16 + 3923095
    a = (start + first) & _ALL_BITS
    b = (start + second) & _ALL_BITS
    c = (start + third) & _ALL_BITS
    a = ((a - c) & _ALL_BITS) ^ _rotated(c, 4)
    c = (c + b) & _ALL_BITS
    b = ((b - a) & _ALL_BITS) ^ _rotated(a, 6)
    a = (a + c) & _ALL_BITS
    c = ((c - b) & _ALL_BITS) ^ _rotated(b, 8)
    b = (b + a) & _ALL_BITS
    a = ((a - c) & _ALL_BITS) ^ _rotated(c, 16)
    c = (c + b) & _ALL_BITS
    b = ((b - a) & _ALL_BITS) ^ _rotated(a, 19)
    a = (a + c) & _ALL_BITS
    c = ((c - b) & _ALL_BITS) ^ _rotated(b, 4)
    b = (b + a) & _ALL_BITS
    # The last four bytes.
    a = (a + fourth) & _ALL_BITS
    c = ((c ^ b) - _rotated(b, 14)) & _ALL_BITS
    a = ((a ^ c) - _rotated(c, 11)) & _ALL_BITS
    b = ((b ^ a) - _rotated(a, 25)) & _ALL_BITS
    c = ((c ^ b) - _rotated(b, 16)) & _ALL_BITS
    a = ((a ^ c) - _rotated(c, 4)) & _ALL_BITS
    b = ((b ^ a) - _rotated(a, 14)) & _ALL_BITS
    c = ((c ^ b) - _rotated(b, 24)) & _ALL_BITS
    return c - 2**32 if c >= 2**31 else c


def _rotated(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (32 - bits))) & _ALL_BITS
