"""Best fit of requests to devices."""

from __future__ import annotations

from nnunet_jobs.devices.allocator import Book, Device, Request

SMALL = Device(uuid="small", total_mib=24, free_mib=24)
LARGE = Device(uuid="large", total_mib=80, free_mib=80)


def test_the_tightest_device_that_fits_is_taken() -> None:
    book = Book([LARGE, SMALL])
    assert book.place(Request(kind="cuda", memory_mib=20)) == ["small"]
    assert book.place(Request(kind="cuda", memory_mib=30)) == ["large"]
    assert book.place(Request(kind="cuda", memory_mib=81)) is None
    assert book.place(Request(kind="cuda")) == ["small"]
    assert book.place(Request(kind="cuda", count=2)) == ["small", "large"]
    assert book.place(Request(kind="cuda", count=3)) is None


def test_what_is_taken_and_what_strangers_use_both_count() -> None:
    device = Device(uuid="shared", total_mib=24, free_mib=18)  # strangers use 6
    book = Book([device])
    book.take(["shared"], 10)
    assert book.place(Request(kind="cuda", memory_mib=8)) == ["shared"]
    assert book.place(Request(kind="cuda", memory_mib=9)) is None


def test_whole_devices_are_shared_with_nobody() -> None:
    book = Book([SMALL])
    book.take(["small"], 1)
    assert book.place(Request(kind="cuda")) is None
    book = Book([SMALL])
    book.take(["small"], None)
    assert book.place(Request(kind="cuda", memory_mib=1)) is None
    assert Book([Device(uuid="busy", total_mib=24, free_mib=23, whole=False)]).place(Request(kind="cuda")) is None


def test_excluded_devices_are_not_used_and_cannot_delay() -> None:
    request = Request(kind="cuda", exclude=("small",))
    assert Book([SMALL, LARGE]).place(request) == ["large"]
    assert not request.could_use(SMALL)
    assert not Request(kind="cuda", memory_mib=30).could_use(SMALL)
    assert request.could_use(LARGE)
