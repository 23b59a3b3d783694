"""The portable driver: SQLAlchemy Core on SQLite (the embedded default) and on MariaDB (an honest yardstick)."""
