"""Settings of the code that runs inside a `with` block."""

import contextlib


@contextlib.contextmanager
def value_in_context(variable, value):
    """Context in which a `contextvars.ContextVar` has a value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
