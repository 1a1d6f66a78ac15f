"""The main job on real data: `fastnest demo` and `fastnest train`."""
