"""Faster and smaller forms of the plain networks of `sld.models`. Each file takes these networks apart from outside.

Nothing in `sld.models`, `sld.samplers` or `sld.guidance` imports these files. Every form is tested against the plain
one.
"""
