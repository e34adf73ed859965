"""Explanations of a run: what guidance does in it, as pictures, curves and maps. Importing this loads no torch."""
