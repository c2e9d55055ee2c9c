"""One base class for the errors that a user can cause, which every command prints in one line."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import lavila
from lavila.errors import UserError

NOT_THE_USERS = {
    "DriverError",  # a call into the driver; the doctor turns it into a finding
    "NotUnderstood",  # a header of H.264 that is not read; the counter of pictures then knows nothing of it
}


def test_every_error_of_the_package_is_one_that_commands_print() -> None:
    others = set()
    for module in pkgutil.walk_packages(lavila.__path__, "lavila."):
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name and issubclass(kind, Exception) and not issubclass(kind, UserError):
                others.add(name)
    assert others == NOT_THE_USERS
