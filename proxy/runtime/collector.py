"""
The collector of cycles, in the processes that live long: it leaves alone what is loaded at their start.

Hundreds of modules stay for ever. The collector would look at them again and again while they are loaded, and once more
when the interpreter ends: a quarter of the time that a start and an end take.
"""

import gc

_YOUNG_OBJECTS = 10_000
"""So many more objects than before call the collector: those of some dozens of requests on their way."""


def pause() -> None:
    """Keep the collector from coming until ``spare``; called before anything heavy is imported."""
    gc.disable()


def spare() -> None:
    """
    Keep the collector from looking at what was loaded until now, and from coming after every few requests.

    A look at all that was imported takes tens of milliseconds, in which nobody is answered.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
    gc.enable()
