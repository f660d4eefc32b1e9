"""What `edgewise simulate` runs the daemon's own router in: `world` is where to begin.

A clock that jumps, networks by traces, a device by its profile, jobs that arrive, simulated routes,
and an oracle that knows what would come of each.
"""
