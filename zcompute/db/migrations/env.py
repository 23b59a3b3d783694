"""Alembic's entry point: runs the migrations on the connection that zcompute.db.migrate hands over."""

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("expected a connection: run `zcompute db upgrade` instead of alembic itself")

context.configure(connection=connection, target_metadata=None, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
