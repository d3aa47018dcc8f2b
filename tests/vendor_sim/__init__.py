"""
DashScope and DashVector, simulated: every path a proxy must get right, with the vendor's bytes, headers and refusals.

- ``sim`` runs it in a test's loop, ``runner`` on a thread or in a process, ``__main__`` by hand.
- ``vectors`` and ``answers`` are pure: what the vendor would say. ``models`` are its tables, ``errors`` its refusals.
- ``settings``, ``faults`` and ``control`` make it slow, strict or wrong; ``recorder`` is what it was asked.
- ``app`` knows the paths; ``gateway``, ``limits`` and ``reply`` are what all calls share; ``exchange`` and ``stores``
  are what passes between them; ``dashscope_*`` are the operations.
- ``dashvector_*`` is DashVector: ``_sim`` and ``_runner`` run it, ``_http`` and ``_grpc`` speak to the world,
  ``_exchange`` is what all calls share, ``_operations`` lead to ``_store``, ``_query``, ``_writes``; ``_clients``
  brings the vendor's SDK to it. Only ``_grpc``, ``_proto*`` and ``_clients`` need the vendor's package.
"""

from tests.vendor_sim.answers import answer, compatible_answer
from tests.vendor_sim.dashvector_faults import DashVectorFault
from tests.vendor_sim.dashvector_recorder import DashVectorRecord
from tests.vendor_sim.dashvector_runner import DashVectorThreadSim, dashvector_thread
from tests.vendor_sim.dashvector_settings import DashVectorSettings
from tests.vendor_sim.dashvector_sim import DashVectorSim, TlsFiles
from tests.vendor_sim.faults import Fault
from tests.vendor_sim.recorder import RecordedRequest
from tests.vendor_sim.runner import ProcessSim, ThreadSim, sim_process, sim_thread
from tests.vendor_sim.settings import SimSettings
from tests.vendor_sim.sim import VendorSim
from tests.vendor_sim.vectors import token_count, vector

__all__ = [
    "DashVectorFault",
    "DashVectorRecord",
    "DashVectorSettings",
    "DashVectorSim",
    "DashVectorThreadSim",
    "Fault",
    "ProcessSim",
    "RecordedRequest",
    "SimSettings",
    "ThreadSim",
    "TlsFiles",
    "VendorSim",
    "answer",
    "compatible_answer",
    "dashvector_thread",
    "sim_process",
    "sim_thread",
    "token_count",
    "vector",
]
