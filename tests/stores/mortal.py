"""A storage whose user is killed before a given change, so that tests can kill a step at every change in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from components.storage.base import Storage
from components.storage.open import open_storage


class Killed(BaseException):
    """Stands for a killed process: nothing catches this."""


def mortal(storage: Storage, changes: list[int]) -> Storage:
    """Let a storage's user die, and return the storage.

    Args:
        storage: Any storage.
        changes: How many objects are still written or deleted, in a list that all its children share.
    """

    def live() -> None:
        if changes[0] == 0:
            raise Killed
        changes[0] -= 1

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def write_or_die(*given: Any) -> Any:
            live()
            return write(*given)

        return write_or_die

    def delete(key: str) -> None:
        if storage.exists(key):
            live()
        forget(key)

    def delete_tree(prefix: str) -> None:
        # One by one, and from the end: no reader may rely on an order, least of all on that of the alphabet, in which
        # COMMIT would come first.
        for entry in reversed(list(storage.list(prefix))):
            storage.delete(entry.key)
        forget_tree(prefix)

    forget, forget_tree, child = storage.delete, storage.delete_tree, storage.child
    methods = {name: dying(getattr(storage, name)) for name in ("write", "create", "upload", "append")}
    methods |= {"delete": delete, "delete_tree": delete_tree}
    methods |= {"child": lambda prefix: mortal(child(prefix), changes)}
    for name, method in methods.items():
        setattr(storage, name, method)
    return storage


def killed_everywhere(
    prepare: Callable[[Storage], object], life: Callable[[Storage], object], url: str
) -> Iterator[Storage]:
    """Yield what a life leaves that is killed before its first change, its second, and so on to the last.

    Args:
        prepare: Fills a storage with what there is before that life.
        life: What is killed; it begins anew each time.
        url: What the storages' names begin with: ``memory://…`` or a folder.
    """
    for changes in count():
        storage = open_storage(f"{url}-{changes}")
        prepare(storage)
        try:
            life(mortal(open_storage(storage.url), [changes]))
        except Killed:
            yield storage
        else:
            return


def contents(storage: Storage) -> dict[str, bytes]:
    """Return every object of a storage."""
    return {entry.key: storage.read(entry.key) for entry in storage.list()}
