"""
DashScope, simulated: every path a proxy must get right, with the vendor's bytes, headers and refusals.

- ``sim`` runs it in a test's loop, ``runner`` on a thread or in a process, ``__main__`` by hand.
- ``vectors`` and ``answers`` are pure: what the vendor would say. ``models`` are its tables, ``errors`` its refusals.
- ``settings``, ``faults`` and ``control`` make it slow, strict or wrong; ``recorder`` is what it was asked.
- ``app`` knows the paths; ``gateway``, ``limits`` and ``reply`` are what all calls share; ``exchange`` and ``stores``
  are what passes between them; ``dashscope_*`` are the operations.
"""

from tests.vendor_sim.answers import answer, compatible_answer
from tests.vendor_sim.faults import Fault
from tests.vendor_sim.recorder import RecordedRequest
from tests.vendor_sim.runner import ProcessSim, ThreadSim, sim_process, sim_thread
from tests.vendor_sim.settings import SimSettings
from tests.vendor_sim.sim import VendorSim
from tests.vendor_sim.vectors import token_count, vector

__all__ = [
    "Fault",
    "ProcessSim",
    "RecordedRequest",
    "SimSettings",
    "ThreadSim",
    "VendorSim",
    "answer",
    "compatible_answer",
    "sim_process",
    "sim_thread",
    "token_count",
    "vector",
]
