"""Guidance rules in other people's programs. Importing this loads none of them."""
