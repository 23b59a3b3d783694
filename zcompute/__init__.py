"""zcompute: the control plane of a very large compute cloud, deployed cell by cell."""

__version__ = "0.1.0"
