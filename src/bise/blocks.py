"""What has been read before: keys and values in blocks of 32 tokens, found again by the exact ids that led there.

A rolling buffer forgets what has left the window, and a sequence that is given to another text forgets all. What is
about to be lost is copied here, block by block, into a tree whose edges are 32 ids each: texts that begin alike share
their blocks, and a text can be taken up at any multiple of 32. That needs only the blocks that the next token sees, so
with a window of W tokens W / 32 of them, however long the text. Ids are compared, never hashes of them, and a text that
was read under one salt is never found under another. The memory is taken once, and when it is full, the block that was
used longest ago goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from .cache import Cache
from .ops import TILE

BLOCK = TILE  # tokens; a ring's size is a multiple of it, so a block lies in one piece


class Node:
    """32 tokens after those of its parent. place: where in the memory their keys and values are, if they are."""

    __slots__ = ("children", "key", "parent", "place")

    def __init__(self, parent: Node | None = None, key: bytes = b"") -> None:
        self.parent, self.key = parent, key
        self.children: dict[bytes, Node] = {}
        self.place: int | None = None


class Blocks:
    """Blocks of a cache's sequences, at most `limit` bytes of them."""

    def __init__(self, cache: Cache, limit: int) -> None:
        self.cache, self.limit = cache, limit
        self._root = Node()
        self._held: OrderedDict[Node, None] = OrderedDict()  # those with a place, the longest unused first
        self._room = [(shape, kind, int(np.prod(shape)) * kind.itemsize) for shape, kind in cache.room(BLOCK)]
        self._size = sum(nbytes for _, _, nbytes in self._room)
        self._memory = np.empty((limit // self._size, self._size), np.uint8)
        self._free = list(range(len(self._memory)))

    @property
    def nbytes(self) -> int:
        return len(self._held) * self._size

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens could go and come back without pushing out half of what is here."""
        return (tokens - self.cache.first_visible(tokens)) // BLOCK * self._size <= self.limit // 2

    def keep(self, salt: str, ids: Sequence[int], sequence: int, start: int, end: int) -> None:
        """Copy the blocks of positions start to end of a sequence that holds `ids`, as far as its ring still has them
        and they are not here yet."""
        start = max(start, self.cache.oldest[sequence])
        first, last = -(-start // BLOCK), end // BLOCK
        if first >= last or not len(self._memory):
            return
        if self.cache.config.sliding_window:  # of more than there is memory for: what the next token sees ...
            first = max(first, last - len(self._memory))
        else:  # ... or a beginning
            last = min(last, first + len(self._memory))
        ids = ids[: last * BLOCK]
        known = [node for node in self._path(salt, ids)[first:] if node.place is not None]
        for node in known:
            self._held.move_to_end(node)
        while len(self._free) < last - first - len(known):  # before the tree grows: an empty leaf would be cut off
            self._drop(next(iter(self._held)))
        for i, node in enumerate(self._path(salt, ids, grow=True)[first:], first):
            if node.place is None:
                node.place = self._free.pop()
                self.cache.read(sequence, i * BLOCK, self._parts(node.place))
                self._held[node] = None

    def known(self, salt: str, ids: Sequence[int]) -> int:
        """From how many tokens of `ids` on a sequence could be taken up."""
        return self._reach(self._path(salt, ids)) * BLOCK

    def fill(self, salt: str, ids: Sequence[int], sequence: int) -> int:
        """Make a sequence hold the beginning of `ids`, as far as it is known -> tokens."""
        path = self._path(salt, ids)
        last = self._reach(path)
        first = self.cache.first_visible(last * BLOCK) // BLOCK
        for i in range(first, last):
            place = path[i].place
            assert place is not None  # `_reach` has seen to it
            self.cache.write(sequence, i * BLOCK, self._parts(place))
            self._held.move_to_end(path[i])
        self.cache.lengths[sequence], self.cache.oldest[sequence] = last * BLOCK, first * BLOCK
        return last * BLOCK

    def _parts(self, place: int) -> list[np.ndarray]:
        """A place in the memory as the arrays that the cache reads and writes."""
        parts, at = [], 0
        for shape, kind, nbytes in self._room:
            parts.append(self._memory[place, at : at + nbytes].view(kind).reshape(shape))
            at += nbytes
        return parts

    def _reach(self, path: Sequence[Node]) -> int:
        """The most blocks of a path after which all that the next token sees is here."""
        reach = run = 0
        for n, node in enumerate(path, 1):
            run = 0 if node.place is None else run + 1
            if run >= n - self.cache.first_visible(n * BLOCK) // BLOCK:
                reach = n
        return reach

    def _path(self, salt: str, ids: Sequence[int], grow: bool = False) -> list[Node]:
        """The nodes of the whole blocks of `ids`, as far as there are any; grow: all of them, made where missing."""
        flat = np.asarray(ids, np.int32).tobytes()
        width, node = BLOCK * 4, self._root
        path: list[Node] = []
        for key in (salt.encode(), *(flat[at : at + width] for at in range(0, len(flat) // width * width, width))):
            found = node.children.get(key)
            if found is None:
                if not grow:
                    return path[1:]
                found = node.children[key] = Node(node, key)
            node = found
            path.append(node)
        return path[1:]

    def _drop(self, node: Node) -> None:
        """Give back a block's place, and the branch that led to nothing else."""
        del self._held[node]
        assert node.place is not None
        self._free.append(node.place)
        node.place = None
        while node.parent is not None and node.place is None and not node.children:
            del node.parent.children[node.key]
            node = node.parent
