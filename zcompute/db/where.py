"""Conditions of a statement, and the SELECT that they make."""

from typing import Any

from zcompute.db.tables import RowForm, TableCodec


class Where:
    """Conditions that are all to hold, with their values. Names come from the codecs, values are always bound."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.values: dict[str, Any] = {}

    def add(self, condition: str, **values: Any) -> None:
        """One more condition, with the values that it names."""
        self._conditions.append(condition)
        self.values.update(values)

    def name(self, value: Any) -> str:
        """A new name that stands for this value."""
        name = f"v{len(self.values)}"
        self.values[name] = value
        return name

    def equals(self, column: str, value: Any) -> None:
        """The column has this value, or one of these values."""
        if value is None:
            self.add(f"{column} IS NULL")
        elif isinstance(value, (list, tuple, set, frozenset)):
            self.add(f"{column} IN :{self.name(list(value))}" if value else "1 = 0")
        else:
            self.add(f"{column} = :{self.name(value)}")

    def select(self, table: RowForm[Any], order: str = "", limit: int | None = None, *, index: str = "") -> str:
        """A SELECT of all columns of the form. ``index``: the one to follow, for MariaDB; to others it is a comment."""
        hint = [f"/*! FORCE INDEX ({index}) */"] if index else []
        parts = ["SELECT", ", ".join(table.columns), "FROM", table.name, *hint, *self._where()]
        if order:
            parts += ["ORDER BY", order]
        if limit is not None:
            parts += ["LIMIT", str(int(limit))]
        return " ".join(parts)

    def count(self, table: TableCodec[Any]) -> str:
        """A SELECT of how many rows there are."""
        return " ".join(["SELECT COUNT(*) FROM", table.name, *self._where()])

    def _where(self) -> list[str]:
        return ["WHERE", " AND ".join(self._conditions)] if self._conditions else []
