"""The episode store: Zarr v3 arrays, built once, read by spans of steps."""
