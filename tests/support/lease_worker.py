"""A process that takes leases and gives them back forever, for tests that kill it: ``lease_worker.py LEDGER DEVICES SEED``."""

from __future__ import annotations

import json
import os
import random
import sys
import time

from nnunet_jobs.devices.allocator import Device, Request
from nnunet_jobs.devices.leases import Ledger


def main() -> None:
    ledger = Ledger(sys.argv[1])
    devices = [Device(**device) for device in json.loads(sys.argv[2])]
    draw = random.Random(int(sys.argv[3]))
    while True:
        memory = draw.choice([6, 8, 12, 24, None])
        count = draw.choice([1, 1, 1, 2])
        request = Request(kind="cuda", count=count, memory_mib=memory, owner=f"worker-{os.getpid()}")
        with ledger.ticket(request) as ticket:
            while (lease := ticket.try_acquire(devices)) is None:
                time.sleep(0.002)
        time.sleep(draw.random() * 0.01)
        lease.release()


if __name__ == "__main__":
    main()
