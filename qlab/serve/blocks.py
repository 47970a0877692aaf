"""Who owns which block of the cache: a pool with counts, and a table a text.

The memory for keys and values is cut into blocks of a few tokens. A text's table lists its blocks
in the order of its tokens; where they lie does not matter. Texts that begin alike may list the same
blocks. Before a text writes into a block that another lists too, it takes a copy (copy on write).

Source: Kwon et al. 2023, Efficient Memory Management for Large Language Model Serving with
PagedAttention, arXiv 2309.06180, sections 4.2 to 4.4.

Chapter: Serving.
"""

from __future__ import annotations

from qlab.errors import QlabError


class BlockPool:
    """Blocks 0 ... count - 1 of ``size`` tokens each, and how many tables list each.

    Raises: QlabError for a count or a size below 1.

    Chapter: Serving.
    """

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise QlabError(f"{count} blocks of {size} tokens: at least one of each")
        self.count, self.size = count, size
        self.owners = [0] * count
        self._free = list(range(count - 1, -1, -1))  # the last is taken first: block 0

    @property
    def free(self) -> int:
        """How many blocks no table lists."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks for so many tokens."""
        return -(-tokens // self.size)

    def take(self) -> int:
        """A free block, now with one owner. Raises: QlabError where none is free."""
        if not self._free:
            raise QlabError(f"all {self.count} blocks are in use: end or preempt a text first")
        block = self._free.pop()
        self.owners[block] = 1
        return block

    def share(self, block: int) -> None:
        """One owner more of a block that is in use."""
        if not self.owners[block]:
            raise QlabError(f"block {block} is free: only one in use can be shared")
        self.owners[block] += 1

    def drop(self, block: int) -> None:
        """One owner less; without any the block is free again."""
        if not self.owners[block]:
            raise QlabError(f"block {block} is free already")
        self.owners[block] -= 1
        if not self.owners[block]:
            self._free.append(block)


class Table:
    """The blocks of one text, and how many tokens are in them.

    Chapter: Serving.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool, self.length = pool, 0
        self.blocks: list[int] = []

    def cost(self, tokens: int) -> int:
        """Free blocks that ``append(tokens)`` would take."""
        if tokens == 0:
            return 0
        more = self.pool.needed(self.length + tokens) - len(self.blocks)
        return more + self._last_is_shared()

    def _last_is_shared(self) -> bool:
        """Whether the next token goes into a block that another table lists as well."""
        inside = self.length % self.pool.size != 0
        return inside and self.pool.owners[self.blocks[-1]] > 1

    def append(self, tokens: int) -> tuple[int, int] | None:
        """Make room for more tokens.

        Returns: (from, to) where the content of one block must be copied to another first, else
            None.

        Raises: QlabError, and nothing changes, where the pool has too few free blocks.
        """
        cost = self.cost(tokens)
        if cost > self.pool.free:
            raise QlabError(f"{tokens} more tokens need {cost} blocks: {self.pool.free} are free")
        copy = None
        if tokens and self._last_is_shared():
            old, new = self.blocks[-1], self.pool.take()
            self.pool.drop(old)
            self.blocks[-1], copy = new, (old, new)
        self.length += tokens
        while len(self.blocks) < self.pool.needed(self.length):
            self.blocks.append(self.pool.take())
        return copy

    def fork(self, length: int | None = None) -> Table:
        """Another text that begins with the first ``length`` tokens of this one, without a copy.

        Raises: QlabError for more tokens than there are.
        """
        length = self.length if length is None else length
        if not 0 <= length <= self.length:
            raise QlabError(f"a fork after {length} tokens: the text has {self.length}")
        other = Table(self.pool)
        other.length, other.blocks = length, self.blocks[: self.pool.needed(length)]
        for block in other.blocks:
            self.pool.share(block)
        return other

    def clear(self) -> None:
        """Give all blocks back."""
        for block in self.blocks:
            self.pool.drop(block)
        self.blocks, self.length = [], 0
