"""Best fit of requests to devices."""

from __future__ import annotations

from nnunet_jobs.devices.allocator import Allocator, Device, Request

SMALL = Device(uuid="small", total_mib=24, free_mib=24)
LARGE = Device(uuid="large", total_mib=80, free_mib=80)


def test_the_tightest_device_that_fits_is_taken() -> None:
    allocator = Allocator([LARGE, SMALL])
    assert allocator.allocate(Request(kind="cuda", memory_mib=20)) == ["small"]
    assert allocator.allocate(Request(kind="cuda", memory_mib=30)) == ["large"]
    assert allocator.allocate(Request(kind="cuda", memory_mib=81)) is None
    assert allocator.allocate(Request(kind="cuda")) == ["small"]
    assert allocator.allocate(Request(kind="cuda", count=2)) == ["small", "large"]
    assert allocator.allocate(Request(kind="cuda", count=3)) is None


def test_what_is_taken_and_what_strangers_use_both_count() -> None:
    device = Device(uuid="shared", total_mib=24, free_mib=18)  # strangers use 6
    allocator = Allocator([device])
    allocator.reserve(["shared"], 10)
    assert allocator.allocate(Request(kind="cuda", memory_mib=8)) == ["shared"]
    assert allocator.allocate(Request(kind="cuda", memory_mib=9)) is None


def test_whole_devices_are_shared_with_nobody() -> None:
    allocator = Allocator([SMALL])
    allocator.reserve(["small"], 1)
    assert allocator.allocate(Request(kind="cuda")) is None
    allocator = Allocator([SMALL])
    allocator.reserve(["small"], None)
    assert allocator.allocate(Request(kind="cuda", memory_mib=1)) is None
    assert Allocator([Device(uuid="busy", total_mib=24, free_mib=23, whole=False)]).allocate(Request(kind="cuda")) is None


def test_excluded_devices_are_not_used_and_cannot_delay() -> None:
    request = Request(kind="cuda", exclude=("small",))
    assert Allocator([SMALL, LARGE]).allocate(request) == ["large"]
    assert not request.could_use(SMALL)
    assert not Request(kind="cuda", memory_mib=30).could_use(SMALL)
    assert request.could_use(LARGE)
