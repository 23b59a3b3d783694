"""Schema migrations (Alembic). Run by zcompute.db.migrate only."""
