"""CPU utilisation, by psutil."""

from __future__ import annotations

import psutil


class Cpu:
    """Utilisation between one reading and the next."""

    def __init__(self, procfs_root: str) -> None:
        """Begin to measure. `procfs_root` is usually /proc."""
        psutil.PROCFS_PATH = procfs_root
        self.read()

    def read(self) -> float | None:
        """Give the utilisation of all cores since the last reading, 0..1; None if unknown."""
        try:
            return float(psutil.cpu_percent(None)) / 100
        except (OSError, ValueError, IndexError):
            return None
