"""Ablations: sweeps of configurations over one prompt set, with tables and plots of their differences."""
