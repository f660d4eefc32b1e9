"""Edgewise: routes inference jobs to the device or to the cloud, and says why."""

__version__ = "0.1.0"
