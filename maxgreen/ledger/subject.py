"""A subject of the ledger: what it says of one thing, within one transaction of its caller."""

from sqlalchemy import Connection


class Subject:
    """What the ledger has of one subject; it lives within one transaction of its caller."""

    def __init__(self, connection: Connection) -> None:
        """`connection` is in a transaction."""
        self._db = connection

    @property
    def connection(self) -> Connection:
        """The transaction that it lives in."""
        return self._db
