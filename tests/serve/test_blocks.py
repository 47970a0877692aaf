"""The pool and its tables: no block has two owners who write, and none is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.errors import QlabError
from qlab.serve import BlockPool, Table


def check(pool, tables):
    """What must hold at any time."""
    listed = [b for table in tables for b in table.blocks]
    for block in range(pool.count):
        assert pool.owners[block] == listed.count(block)
    assert pool.free == pool.owners.count(0)
    for table in tables:
        assert len(table.blocks) == pool.needed(table.length)
        assert len(set(table.blocks)) == len(table.blocks)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_texts_keep_their_tokens_whatever_the_others_do(data):
    """Random appends, forks and ends, with the tokens really written into the blocks."""
    size = data.draw(st.integers(1, 5))
    pool = BlockPool(data.draw(st.integers(1, 12)), size)
    memory, tables, texts, token = {}, [], [], 0
    for _ in range(data.draw(st.integers(1, 30))):
        what = data.draw(st.sampled_from(["new", "append", "append", "fork", "clear"]))
        if what == "new" or not tables:
            tables.append(Table(pool))
            texts.append([])
            continue
        i = data.draw(st.integers(0, len(tables) - 1))
        if what == "append":
            count = data.draw(st.integers(0, 7))
            before = list(tables[i].blocks), tables[i].length, list(pool.owners)
            cost = tables[i].cost(count)
            if cost > pool.free:
                with pytest.raises(QlabError, match="are free"):
                    tables[i].append(count)
                assert before == (tables[i].blocks, tables[i].length, pool.owners)
                continue
            free = pool.free
            copy = tables[i].append(count)
            assert pool.free == free - cost
            if copy is not None:
                for j in range(size):
                    memory[copy[1], j] = memory.get((copy[0], j))
            for position in range(len(texts[i]), len(texts[i]) + count):
                token += 1
                texts[i].append(token)
                memory[tables[i].blocks[position // size], position % size] = token
        elif what == "fork":
            length = data.draw(st.integers(0, tables[i].length))
            tables.append(tables[i].fork(length))
            texts.append(texts[i][:length])
        else:
            tables[i].clear()
            texts[i] = []
        check(pool, tables)
        for table, text in zip(tables, texts, strict=True):
            found = [memory[table.blocks[p // size], p % size] for p in range(table.length)]
            assert found == text
    for table in tables:
        table.clear()
    assert pool.free == pool.count and pool.owners == [0] * pool.count


def test_a_shared_prompt_costs_its_blocks_once_and_one_copy_each():
    """Three texts of a prompt of 10 tokens in blocks of 4: by hand, as in the paper's figure 8."""
    pool = BlockPool(20, 4)
    first = Table(pool)
    first.append(10)
    others = [first.fork(), first.fork()]
    assert pool.count - pool.free == 3 and pool.owners[:3] == [3, 3, 3]
    copies = [table.append(1) for table in (first, *others)]
    # The first two to write take a copy of the last block; the third is then its only owner.
    assert [c is not None for c in copies] == [True, True, False]
    assert pool.count - pool.free == 5 and pool.owners[:3] == [3, 3, 1]


@pytest.mark.parametrize("count, size", [(0, 4), (4, 0), (-1, 1)])
def test_a_pool_of_nothing_is_refused(count, size):
    with pytest.raises(QlabError, match="at least one"):
        BlockPool(count, size)


def test_what_is_free_can_be_neither_shared_nor_dropped():
    pool = BlockPool(1, 4)
    block = pool.take()
    with pytest.raises(QlabError, match="in use"):
        pool.take()
    pool.drop(block)
    with pytest.raises(QlabError, match="free already"):
        pool.drop(block)
    with pytest.raises(QlabError, match="is free"):
        pool.share(block)
    with pytest.raises(QlabError, match="the text has 0"):
        Table(pool).fork(1)
