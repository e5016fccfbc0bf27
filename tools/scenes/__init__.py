"""Furnished indoor rooms, ray cast from a catalogue of real furniture models into Taskonomy's layout and encodings.

Reading order: `catalogue` (what furniture there is) -> `styles` (what makes one building differ from another) ->
`rooms` (what stands where) -> `soup` (triangles and materials) -> `render` (rays, light, labels) -> `dataset` (files).
"""
