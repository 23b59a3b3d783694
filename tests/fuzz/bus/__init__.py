"""Bad input to the bus: `python -m tests.fuzz.bus --mutations N --seed S`; a seed repeats a run."""
