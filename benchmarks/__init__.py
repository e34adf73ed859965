"""What things cost, side by side with diffusers; `python -m benchmarks`. Not part of the package."""
