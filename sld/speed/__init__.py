"""What makes sampling faster or lighter, taken from outside: each file takes the plain networks of `sld.models` apart.

Nothing in `sld.models`, `sld.samplers` or `sld.guidance` knows of it, and every form is tested against the plain one.
"""
