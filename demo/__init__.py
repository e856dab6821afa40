"""`make demo`: the main job on real scanner files that the dependencies ship, and on phantoms that are drawn."""
