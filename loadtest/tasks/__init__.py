"""Tasks under way while their conductors are killed (``python -m loadtest.tasks``)."""
