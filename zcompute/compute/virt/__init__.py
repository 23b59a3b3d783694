"""Virtualisation drivers: one interface (``driver``), and the hypervisors behind it."""
