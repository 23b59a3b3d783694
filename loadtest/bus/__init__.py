"""The bus against what its users could pick instead. `python -m loadtest.bus --help`."""
