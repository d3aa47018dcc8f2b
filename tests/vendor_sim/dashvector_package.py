"""
The vendor's package, imported in one place.

Its sources have escapes that Python warns of when it compiles them, which is an error under the tests' filters wherever
no compiled copy is lying about. Filters cannot name the package: the module of such a warning is the file's path.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import dashvector  # type: ignore[import-untyped]
    from dashvector.core.handler.http_handler import HTTPHandler  # type: ignore[import-untyped]
    from dashvector.core.proto import dashvector_pb2 as pb  # type: ignore[import-untyped]
    from dashvector.util import validator  # type: ignore[import-untyped]

__all__ = ["HTTPHandler", "dashvector", "pb", "validator"]
