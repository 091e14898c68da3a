"""Connected components, in the order of their members."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torchquilt._internal.connected import connected


def test_links_join_through_others() -> None:
    """Groups stand in the order of their first members, members in their own."""
    found = connected("dcbae", [("a", "b"), ("b", "d"), ("e", "e")])
    assert found == [("d", "b", "a"), ("c",), ("e",)]


@given(st.integers(1, 12), st.data())
def test_each_member_is_in_one_group_with_all_that_it_is_linked_to(size: int, data: st.DataObject) -> None:
    """For all links, in every order."""
    member = st.integers(0, size - 1)
    links = data.draw(st.lists(st.tuples(member, member)))
    found = connected(range(size), links)
    assert sorted(one for group in found for one in group) == list(range(size))
    group_of = {one: number for number, group in enumerate(found) for one in group}
    assert all(group_of[one] == group_of[other] for one, other in links)
    assert connected(range(size), [link[::-1] for link in reversed(links)]) == found
    assert len(found) >= size - len(links)
