"""The version, where everything can import it: the package itself imports upper floors on demand."""

from __future__ import annotations

__version__ = "0.2.0"
